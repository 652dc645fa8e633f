"""Checkpoints of LLaVA's code and of what was made of it: a language model's config.json with `mm_*` keys.

Source: docs/sources/llava_line.md; of TinyLLaVABench docs/sources/tinyllava.md#tinyllavabench-checkpoints.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from tinyllava_edge.errors import CheckpointError, MissingFileError, UnsupportedModelError

from .families import TOWERS
from .source_names import names_under_sources, public_name
from .values import Translated


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one code base does with its checkpoints.

    Attributes:
        code: its name, for messages.
        family: of its language model.
        template: of prompts, that its own scripts train with; "" for the family's.
        template_by_eos: another template, by the tokenizer's EOS token that tells it.
        siglip_selects: its SigLIP follows `mm_vision_select_layer` and `_feature`, where the others' code has
            the layer before the last and every token.
        siglip_processor: its code has SigLIP's processor, and reads no file for it.
        cuts_rows: its loader cuts the vocabulary to the tokenizer's length.
        patch_tokens: tokens that its loader adds to the tokenizer where `mm_use_im_patch_token` is not false.
        head_bias: the head of its Phi has a bias.
        merge_script: of its repository, that merges a LoRA adapter; "" where it has none.
    """

    code: str
    family: str
    template: str = ""
    template_by_eos: Mapping[str, str] = field(default_factory=dict)
    siglip_selects: bool = False
    siglip_processor: bool = False
    cuts_rows: bool = True
    patch_tokens: int = 0
    head_bias: bool = False
    merge_script: str = "scripts/merge_lora_weights.py"

    def unmerged(self, adapter: Path, base: str) -> UnsupportedModelError:
        """What to say of a LoRA adapter that was trained on `base`."""
        how = "as its loader does, and save the model."
        if self.merge_script:
            how = (
                f"in its repository: python {self.merge_script} --model-path {adapter.parent} "
                f"--model-base {base} --save-model-path MERGED. Then give MERGED."
            )
        return UnsupportedModelError(
            f"{adapter}: a LoRA adapter of {self.code} is not merged here. Merge it into its base {how}"
        )


_BENCH: dict[str, Any] = {"code": "TinyLLaVABench", "siglip_processor": True}
_LLAVA: dict[str, Any] = {"code": "LLaVA", "siglip_processor": True, "patch_tokens": 1}
_NEXT = {"code": "LLaVA-NeXT", "merge_script": "scripts/archived/merge_lora_weights.py"}
_MOE: dict[str, Any] = {"code": "MoE-LLaVA", "template": "phi", "siglip_selects": True, "patch_tokens": 2}
_BUNNY: dict[str, Any] = {
    "code": "Bunny",
    "template": "bunny",
    "merge_script": "script/merge_lora_weights.py --model-type TYPE",  # `phi-2` and so on, its own names
}
_LLAMA3 = "llava_pp_llama3"

LINES = {
    "tiny_llava": Line(family="llama", **_BENCH),
    "tiny_llava_phi": Line(family="phi", **_BENCH),
    "tiny_llava_stablelm": Line(family="stablelm", **_BENCH),
    "llava_llama": Line(
        family="llama",
        template="v1",
        template_by_eos={"<|eot_id|>": _LLAMA3, "<|end_of_text|>": _LLAMA3},
        **_LLAVA,
    ),
    "llava_qwen": Line(family="qwen2", template="qwen_1_5", **{**_LLAVA, **_NEXT}),
    "llava_qwen2": Line(
        family="qwen2", template="qwen_2", **{**_LLAVA, "code": "ml-fastvlm", "merge_script": ""}
    ),
    "llava_qwen1_5": Line(family="qwen2", **_MOE),
    "llava_phi": Line(family="phi", **_MOE),
    "llava_stablelm": Line(family="stablelm", **_MOE),
    "bunny-phi": Line(family="phi", **_BUNNY),
    "bunny-phi3": Line(family="phi3", **_BUNNY),
    "bunny-qwen2": Line(family="qwen2", **_BUNNY),
    "bunny-stablelm": Line(family="stablelm", **_BUNNY),
    "bunny-llama": Line(family="llama", **{**_BUNNY, "template": "llama3"}),
}
# What stands in the place of these where only the `mm_` keys tell: before `llava` was transformers' own name,
# and where NeXT trained on a plain Qwen2.
_OTHER_TYPES = {"llava": "llava_llama", "llama": "llava_llama", "qwen2": "llava_qwen"}
# `llava_phi` is the name of three: the two that are not MoE-LLaVA's.
_LLAVA_PHI = Line(code="LLaVA-Phi", family="phi", template="phi", cuts_rows=False, head_bias=True)
_LLAVA_PHI3 = Line(family="phi3", template="phi3_instruct", **{**_LLAVA, "code": "LLaVA++"})

# Configs of the towers that most of these checkpoints only name: docs/sources/tinyllava.md#sizes.
_CLIP_L14 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
KNOWN_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {**_CLIP_L14, "image_size": 336},
    "openai/clip-vit-large-patch14": {**_CLIP_L14, "image_size": 224},
    "google/siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}
# A tower's config as the whole model of its repository has it.
_WHOLE_TOWERS = {
    "clip": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
    "llava_phi_clip_vision_model": "clip_vision_model",
}
# StableLM's keys before it came to transformers.
_OLD_NAMES = {
    "rope_pct": "partial_rotary_factor",
    "norm_eps": "layer_norm_eps",
    "num_heads": "num_attention_heads",
}
# What config.json calls keys of TinyLLaVA Factory's.
_OWN_KEYS = {
    "vision_feature_layer": "mm_vision_select_layer",
    "vision_feature_select_strategy": "mm_vision_select_feature",
}
# Others have projectors under other connectors' names.
_SHARED_PROJECTORS = re.compile(r"linear|identity|mlp[1-9]\d?x_gelu")
_NOT_OF_THE_LANGUAGE_MODEL = (
    *("mm_", "tune_", "freeze_", "tokenizer_", "image_", "video_", "vision_", "use_mm_", "pad_token"),
    *("resampler_", "num_queries", "num_resampler_", "load_moe_", "unfreeze_", "use_s2", "s2"),
    *("continuous_training", "delay_load", "add_faster_video", "add_time_instruction", "faster_token_stride"),
    *("force_sample", "frames_upbound", "pos_skipping_range", "use_pos_skipping"),
)
_NOT_OF_A_TOWER = ("image_mean", "image_std", "tie_word_embeddings")
# Keys that change what is computed -> what they do.
_REFUSED = {
    "s2": "the S2 wrapper's tiles",
    "use_s2": "the S2 wrapper's tiles",
    "mm_resampler_type": "a resampler between tower and projector",
    "load_moe_mm_projector": "a mixture of projectors",
    "mm_video_tower": "a video tower",
}
_TOWER_KEYS = ("mm_vision_tower", "mm_image_tower")
_OTHER_TOWERS = re.compile(r"EVA(?=\d*[-_])|mobileclip", re.IGNORECASE)
_TRAINED_TOWER = ("unfreeze_mm_vision_tower", "unfreeze_vision_tower")


def line_of(raw: Mapping[str, Any]) -> Line | None:
    """The code base that a config.json is of; None where it is none of the line."""
    kind = raw.get("model_type")
    if "mm_vision_tower" in raw:
        kind = _OTHER_TYPES.get(str(kind), kind)
    if kind == "llava_phi":
        vision = raw.get("vision_config")
        if isinstance(vision, dict) and "vision_tower" in vision:
            return _LLAVA_PHI
        if "rms_norm_eps" in raw:
            return _LLAVA_PHI3
    return LINES.get(str(kind))


def tower_name(raw: Mapping[str, Any]) -> str:
    """The repository that a tower is of, by config.json."""
    return next((str(raw[key]) for key in _TOWER_KEYS if raw.get(key)), "")


def picture_of(raw: Mapping[str, Any]) -> str | None:
    """What stands for a picture in a prompt, where it is not `<image>` alone."""
    return "<im_start><image><im_end>" if line_of(raw) and raw.get("mm_use_im_start_end") else None


def trained_tower(raw: Mapping[str, Any]) -> str | None:
    """The key that says that a tower was trained, so that no other one may stand in for it."""
    if "mm_vision_tower" in str(raw.get("mm_tunable_parts") or "").split(","):
        return "mm_tunable_parts"
    return next((key for key in _TRAINED_TOWER if raw.get(key)), None)


def is_tower(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a tower alone, or of the model that its repository has it in."""
    return config.get("model_type") in (*_WHOLE_TOWERS, *TOWERS)


def no_tower(raw: Mapping[str, Any], path: Path) -> MissingFileError | UnsupportedModelError:
    """What to say where a tower's own config is nowhere."""
    name = tower_name(raw)
    key = next((key for key in _TOWER_KEYS if raw.get(key)), _TOWER_KEYS[0])
    if other := _OTHER_TOWERS.search(name):
        return UnsupportedModelError(
            f"{path}: {key} = {name!r}: the tower {other[0]} is not supported. Supported: CLIP, SigLIP."
        )
    if "vision_tower_cfg" in raw:
        return UnsupportedModelError(
            f"{path}: vision_tower_cfg: VILA's layout, of three models in folders, is not supported."
        )
    if not name:
        return MissingFileError(f"{path}: {key} is missing, which names the vision tower.")
    return MissingFileError(
        f"{path}: {key} = {name!r}, whose config.json is not there. Give --sources DIR with that "
        f"repository's files in DIR/{[*names_under_sources(name), 'NAME'][0]} or in DIR itself."
    )


def tower_config(
    raw: Mapping[str, Any], found: Mapping[str, Any] | None
) -> tuple[dict[str, Any], str] | None:
    """A tower's own config: in config.json, in the file that was found for its name, or of a known name.

    Returns:
        It, and what stands before its keys in the file that it is in; None where it is nowhere.
    """
    under, inside = "", raw.get("vision_config")
    if isinstance(inside, dict) and isinstance(inside.get("vision_tower"), dict):
        under, found = "vision_config.vision_tower.", inside["vision_tower"]
    if found is None:
        public = public_name(tower_name(raw), KNOWN_TOWERS)
        return (dict(KNOWN_TOWERS[public]), "") if public else None
    kind = str(found.get("model_type"))
    tower = found.get("vision_config", found)
    if kind not in _WHOLE_TOWERS or not isinstance(tower, dict):
        return dict(found), under
    under += "" if tower is found else "vision_config."
    return {**tower, "model_type": _WHOLE_TOWERS[kind]}, under


def line_config(
    raw: Mapping[str, Any], line: Line, vision: Mapping[str, Any], path: Path, place: str
) -> dict[str, Any]:
    """A `config.json` of the line as TinyLLaVA Factory would write it.

    Source: docs/sources/llava_line.md#keys-of-the-configuration.

    Args:
        raw: the language model's config with `mm_*` keys.
        line: whose it is.
        vision: the tower's own config, with every layer.
        path: of the file, for messages.
        place: the tower's file and what stands before its keys there, for messages.

    Raises:
        UnsupportedModelError: a projector or a step that TinyLLaVA Factory does not have.
        CheckpointError: the projector's widths are not those of tower and language model.
    """
    nested = raw.get("vision_config")
    parts: Mapping[str, Any] = nested if line is _LLAVA_PHI and isinstance(nested, dict) else {}
    projector = _projector(raw, line, parts, path)
    _check_widths(raw, parts, vision, path)
    if projector == "identity" and vision.get("hidden_size") != raw.get("hidden_size"):
        raise CheckpointError(
            f"{path}: mm_projector_type 'identity' needs equal widths, found hidden_size "
            f"{shown(raw.get('hidden_size'))} and {shown(vision.get('hidden_size'))} of the tower."
        )
    own = {key: value for key, value in raw.items() if not key.startswith(_NOT_OF_THE_LANGUAGE_MODEL)}
    text = {new: own.pop(old) for old, new in _OLD_NAMES.items() if old in own} | own
    config = {
        "model_type": "tinyllava",
        "text_config": {**text, "model_type": line.family},
        **_tower(raw, line, vision),
        "connector_type": projector,
        "vision_model_name_or_path": tower_name(raw),
        "llm_model_name_or_path": raw.get("_name_or_path", ""),
        "image_aspect_ratio": raw.get("image_aspect_ratio") or "square",
        "tokenizer_model_max_length": raw.get("tokenizer_model_max_length") or 2048,
        "torch_dtype": raw.get("dtype") or raw.get("torch_dtype"),
    }
    return Translated(config, {**_OWN_KEYS, "text_config": f"{path}: ", "vision_config": place})


def _check_widths(
    raw: Mapping[str, Any], parts: Mapping[str, Any], vision: Mapping[str, Any], path: Path
) -> None:
    """The projector's, of which LLaVA-Phi has a config of its own."""
    inner = parts.get("mm_projector")
    under, own = ("vision_config.mm_projector.", inner) if isinstance(inner, dict) else ("", raw)
    width, tower_width = own.get("mm_hidden_size"), vision.get("hidden_size")
    if width is not None and isinstance(tower_width, int) and width != tower_width:
        raise CheckpointError(
            f"{path}: {under}mm_hidden_size = {shown(width)}, but the tower {tower_name(raw)!r} has "
            f"hidden_size {tower_width}: the projector is of another tower."
        )
    if own.get("hidden_size") not in (None, raw.get("hidden_size")):
        raise CheckpointError(
            f"{path}: {under}hidden_size = {shown(own['hidden_size'])}, but the language model has "
            f"hidden_size {shown(raw.get('hidden_size'))}: the projector is of another model."
        )


def _projector(raw: Mapping[str, Any], line: Line, parts: Mapping[str, Any], path: Path) -> str:
    """The projector's type; what else changes the rows of a picture is refused by its key."""
    for key, what in _REFUSED.items():
        if raw.get(key):
            raise UnsupportedModelError(f"{path}: {key} = {shown(raw[key])}: {what}: not supported.")
    merge = str(raw.get("mm_patch_merge_type") or "flat")
    if "unpad" in merge:
        raise UnsupportedModelError(
            f"{path}: mm_patch_merge_type {merge!r} puts a learned row behind pictures: not supported. "
            "Supported: flat, spatial."
        )
    inner = parts.get("mm_projector")
    keys = ("mm_projector_type", "image_projector_type")
    said = next(
        (str(raw[key]) for key in keys if raw.get(key)), "mlp2x_gelu" if line.code == "Bunny" else "linear"
    )
    projector = str(inner.get("mm_projector_type", "linear")) if isinstance(inner, dict) else said
    if not _SHARED_PROJECTORS.fullmatch(projector):
        raise UnsupportedModelError(
            f"{path}: {line.code}'s projector {projector!r} (mm_projector_type) is not supported. "
            "Supported in this layout: linear, identity, mlpNx_gelu."
        )
    return projector


def _tower(raw: Mapping[str, Any], line: Line, vision: Mapping[str, Any]) -> dict[str, Any]:
    """SigLIP loses its last layer and its head: docs/sources/llava_line.md#features-of-the-tower."""
    tower = {key: value for key, value in vision.items() if key not in _NOT_OF_A_TOWER}
    chosen = {**raw, **{key: tower.pop(key) for key in [*tower] if key.startswith("mm_vision_select_")}}
    if tower.get("model_type") != "siglip_vision_model" or line.siglip_selects:
        return {
            "vision_config": tower,
            "vision_feature_layer": chosen.get("mm_vision_select_layer", -2),
            "vision_feature_select_strategy": chosen.get("mm_vision_select_feature", "patch"),
        }
    layers = tower.get("num_hidden_layers", 27 if line.siglip_processor else 12)
    if isinstance(layers, int):  # what else it may be is refused by name, with all other values
        tower["num_hidden_layers"] = layers - 1
    tower["vision_use_head"] = False
    return {
        "vision_config": tower,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "cls_patch",
    }
