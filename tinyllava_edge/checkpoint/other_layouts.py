"""The configs of other layouts, in the words of TinyLLaVA Factory.

Source: docs/sources/tinyllava.md#tinyllavabench-checkpoints.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import UnsupportedModelError

# TinyLLaVABench's model types, and the family of their language model.
LEGACY_FAMILIES = {"tiny_llava": "llama", "tiny_llava_phi": "phi", "tiny_llava_stablelm": "stablelm"}
# StableLM's keys before it came to transformers.
_OLD_NAMES = {
    "rope_pct": "partial_rotary_factor",
    "norm_eps": "layer_norm_eps",
    "num_heads": "num_attention_heads",
}
# TinyLLaVABench's resampler and mixture of experts are not what TinyLLaVA Factory has under these names.
_SHARED_PROJECTORS = re.compile(r"linear|identity|mlp\d+x_gelu")
# What transformers' LlavaForConditionalGeneration calls upstream's strategies: "default" drops token 0 too.
_LLAVA_STRATEGIES = {"default": "patch", "full": "cls_patch"}
_NOT_OF_THE_LANGUAGE_MODEL = (
    *("mm_", "tune_", "freeze_", "tokenizer_", "image_", "use_mm_", "pad_token"),
    *("resampler_", "num_queries", "num_resampler_", "load_moe_", "unfreeze_"),
)


def factory_config(raw: Mapping[str, Any], vision: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A TinyLLaVABench `config.json` as TinyLLaVA Factory would write it.

    Args:
        raw: the language model's config with `mm_*` keys.
        vision: the tower's own config, with the layer that the code deletes.
        path: of the file, for messages.

    Raises:
        UnsupportedModelError: a projector that TinyLLaVA Factory does not have.
    """
    projector = str(raw.get("mm_projector_type", "linear"))
    if not _SHARED_PROJECTORS.fullmatch(projector) or raw.get("load_moe_mm_projector"):
        raise UnsupportedModelError(
            f"{path}: TinyLLaVABench's projector {projector!r}"
            f"{' with load_moe_mm_projector' if raw.get('load_moe_mm_projector') else ''} is not supported. "
            "Supported in this layout: linear, identity, mlpNx_gelu."
        )
    own = {key: value for key, value in raw.items() if not key.startswith(_NOT_OF_THE_LANGUAGE_MODEL)}
    text = {new: own.pop(old) for old, new in _OLD_NAMES.items() if old in own} | own
    return {
        "model_type": "tinyllava",
        "text_config": {**text, "model_type": LEGACY_FAMILIES[str(raw["model_type"])]},
        **_legacy_tower(raw, vision),
        "connector_type": projector,
        "vision_model_name_or_path": raw.get("mm_vision_tower", ""),
        "llm_model_name_or_path": raw.get("_name_or_path", ""),
        "image_aspect_ratio": raw.get("image_aspect_ratio", "square"),
        "tokenizer_model_max_length": raw.get("tokenizer_model_max_length", 2048),
        "torch_dtype": raw.get("torch_dtype"),
    }


def _legacy_tower(raw: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    """Its SigLIP deletes the last layer and the head and keeps every token, whatever config.json says."""
    tower = {key: value for key, value in vision.items() if key not in ("image_mean", "image_std")}
    if tower.get("model_type") == "clip_vision_model":
        return {
            "vision_config": tower,
            "vision_feature_layer": raw.get("mm_vision_select_layer", -2),
            "vision_feature_select_strategy": raw.get("mm_vision_select_feature", "patch"),
        }
    layers = tower.get("num_hidden_layers", 27)
    if isinstance(layers, int):  # what else it may be is refused by name, with all other values
        tower["num_hidden_layers"] = layers - 1
    tower["vision_use_head"] = False
    return {
        "vision_config": tower,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "cls_patch",
    }


def llava_config(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A `config.json` of transformers' own LlavaForConditionalGeneration, likewise.

    Raises:
        UnsupportedModelError: a projector or strategy that TinyLLaVA does not have.
    """
    strategy = raw.get("vision_feature_select_strategy", "default")
    activation = raw.get("projector_hidden_act", "gelu")
    bias = raw.get("multimodal_projector_bias", True)
    if strategy not in [*_LLAVA_STRATEGIES] or activation != "gelu" or bias is not True:
        raise UnsupportedModelError(
            f"{path}: a LLaVA projector with vision_feature_select_strategy {strategy!r}, "
            f"projector_hidden_act {activation!r} and multimodal_projector_bias {bias!r} is not supported. "
            f"Supported: {', '.join(_LLAVA_STRATEGIES)}; gelu; true."
        )
    vision = raw.get("vision_config")
    if isinstance(vision, dict):  # older files give the tower a vocabulary
        vision = {key: value for key, value in vision.items() if key != "vocab_size"}
    return {
        "model_type": "tinyllava",
        "text_config": raw.get("text_config"),
        "vision_config": vision,
        "connector_type": "mlp2x_gelu",
        "vision_feature_layer": raw.get("vision_feature_layer", -2),
        "vision_feature_select_strategy": _LLAVA_STRATEGIES[strategy],
        "image_aspect_ratio": "square",
        "torch_dtype": raw.get("dtype") or raw.get("torch_dtype"),
    }
