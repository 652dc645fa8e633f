"""The config of transformers' own LlavaForConditionalGeneration, in the words of TinyLLaVA Factory.

Source: docs/sources/tinyllava.md#tinyllavabench-checkpoints.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import UnsupportedModelError

# What it calls upstream's strategies: "default" drops token 0 too.
_LLAVA_STRATEGIES = {"default": "patch", "full": "cls_patch"}


def llava_config(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A `config.json` of LlavaForConditionalGeneration as TinyLLaVA Factory would write it.

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
