"""What a TinyLLaVA checkpoint says about itself, one frozen dataclass per part.

Source of the layout: spec/tinyllava.md sections 1 and 3.4. `text_config` and `vision_config` are *diffs*: a
key equal to the defaults of its own transformers config class may be missing; `families.py` has those
defaults. Knows nothing of torch or transformers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tinyllava_edge.config_values import MAX_SIZE, resolved_part, whole_number
from tinyllava_edge.errors import CheckpointError, UnsupportedModelError
from tinyllava_edge.families import (
    FAMILY_TEMPLATES,
    LANGUAGE_DEFAULTS,
    PREFIX_TOKENS,
    PUBLIC_TOWERS,
    VISION_DEFAULTS,
)
from tinyllava_edge.legacy import LEGACY_FAMILIES, factory_config, llava_config

IMAGE_TOKEN_ID = -200  # placeholder of a picture in token ids, never a vocabulary entry
IGNORE_LABEL = -100  # label of a position that does not count for the loss
IMAGE_MARKER = "<image>"
SIDECAR_FILE = "tinyllava_edge.json"  # what upstream never stores: template, recipe, data hash

QUERY_CONNECTORS = ("resampler", "qformer")  # their learned queries are the rows, whatever comes in
_RMS_EPS_OF_OPENELM = 1e-6  # a constant of its code


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Vision tower, from `vision_config` and the top-level `vision_feature_*` keys."""

    architecture: str
    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    feature_layer: int = -2
    select_strategy: str = "patch"
    name_or_path: str = ""
    has_head: bool = True  # SigLIP's pooling head; upstream's files have it, and nothing uses it

    @property
    def drop_first(self) -> bool:
        """Whether token 0 is dropped: `patch` does so for every tower, class token or not (spec 0.1)."""
        return self.select_strategy == "patch"

    @property
    def num_tokens(self) -> int:
        """Tokens of one picture of `image_size` that reach the connector."""
        return self.num_tokens_at(self.image_size)

    def num_tokens_at(self, image_size: int) -> int:
        """Tokens of one picture of another size, which DINOv2 takes; a rest at the edges is not used."""
        patches = (image_size // self.patch_size) ** 2
        return PREFIX_TOKENS[self.architecture] + patches - int(self.drop_first)

    @property
    def num_used_layers(self) -> int:
        """Encoder layers that the feature layer needs; `hidden_states[n]` is the output of n layers."""
        if self.feature_layer >= 0:
            return self.feature_layer
        return self.num_hidden_layers + 1 + self.feature_layer


@dataclass(frozen=True, kw_only=True)
class BertSizes:
    """What a Q-Former takes from bert-base-uncased's config.json, which no checkpoint contains."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12


@dataclass(frozen=True, kw_only=True)
class ConnectorConfig:
    """Connector; the sizes beside its type matter for `resampler` and `qformer` only."""

    type: str
    num_queries: int = 128
    num_layers: int = 3
    bert: BertSizes = BertSizes()


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Language model, from `text_config` with the family's defaults filled in.

    Attributes:
        intermediate_size: width of the feed-forward; the widest layer's where layers differ (OpenELM), as are
            `num_attention_heads` and `num_key_value_heads`.
        rotary_dim: how many values of a head RoPE turns.
        values: every resolved key of the family, for its own module and converter.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    max_position_embeddings: int
    norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_id: int | None
    name_or_path: str = ""
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole checkpoint: its parts and how prompt and picture are prepared."""

    vision: VisionConfig
    second_vision: VisionConfig | None  # the DINOv2 half of a mixture of features (MoF)
    connector: ConnectorConfig
    language: LanguageConfig
    image_aspect_ratio: str  # "square" or "pad"
    tokenizer_max_length: int
    template: str
    template_reason: str
    dtype: str  # of the stored weights as config.json says; "" where it does not

    def num_picture_tokens(self, image_size: int) -> int:
        """Rows that one picture of `image_size` takes in the language model's context."""
        if self.connector.type in QUERY_CONNECTORS:
            return self.connector.num_queries
        towers = [tower for tower in (self.vision, self.second_vision) if tower is not None]
        return sum(tower.num_tokens_at(image_size) for tower in towers)


def read_model_config(
    directory: Path, *, template: str | None = None, sources: Path | None = None
) -> ModelConfig:
    """Read `config.json` (and `tinyllava_edge.json` where there is one) of a TinyLLaVA checkpoint.

    Args:
        directory: the checkpoint.
        template: name of the prompt template, in the place of the stored or inferred one.
        sources: where the configs are that the checkpoint only names (a MoF's second tower, Q-Former's BERT).

    Raises:
        CheckpointError: a file is missing or not JSON, or a value is impossible.
        UnsupportedModelError: a part is not supported; the message lists what is.
    """
    path = directory / "config.json"
    raw = read_factory_config(directory, sources=sources)
    if raw.get("model_type") != "tinyllava":
        raise UnsupportedModelError(
            f"{path}: model_type is {raw.get('model_type')!r}, expected 'tinyllava'. "
            "Supported today: checkpoints saved by TinyLLaVA Factory or by `tinyllava-edge train`."
        )
    vision = vision_config(raw, path)
    language = language_config(raw, path)
    name, reason = (template, "given by --template") if template else _inferred_template(directory, language)
    max_length = whole_number(raw, "tokenizer_model_max_length", language.max_position_embeddings, path)
    aspect = raw.get("image_aspect_ratio", "square")
    if aspect not in ("square", "pad"):
        raise UnsupportedModelError(f"{path}: image_aspect_ratio is {aspect!r}. Supported: square, pad.")
    return ModelConfig(
        vision=vision,
        second_vision=_second_vision(raw, path, sources),
        connector=_connector_config(raw, path, sources),
        language=language,
        image_aspect_ratio=aspect,
        tokenizer_max_length=max_length,
        template=name,
        template_reason=reason,
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or ""),
    )


def read_factory_config(directory: Path, *, sources: Path | None = None) -> dict[str, Any]:
    """`config.json` as TinyLLaVA Factory would write it, whatever layout the checkpoint has.

    Raises:
        CheckpointError: a file is missing or not JSON.
    """
    path = directory / "config.json"
    raw = read_json_object(path)
    if is_legacy(raw):
        return _legacy_config(raw, path, sources)
    return llava_config(raw) if is_llava(raw) else raw


def _inferred_template(directory: Path, language: LanguageConfig) -> tuple[str, str]:
    """Name of the prompt template, which upstream never stores, and why it is that one."""
    sidecar = directory / SIDECAR_FILE
    stored = read_json_object(sidecar).get("template") if sidecar.exists() else None
    if stored is not None:
        return str(stored), f"stored in {SIDECAR_FILE}"
    family = language.architecture
    tokenizer = directory / "tokenizer_config.json"
    if family == "qwen2" and tokenizer.exists():
        eos = read_json_object(tokenizer).get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        if eos == "<|im_end|>":
            return "qwen2_instruct", f"inferred from the family {family!r} and the tokenizer's EOS {eos!r}"
    return FAMILY_TEMPLATES[family], f"inferred from the language model's family {family!r}"


def is_legacy(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of TinyLLaVABench, the code before TinyLLaVA Factory."""
    return str(raw.get("model_type")) in LEGACY_FAMILIES


def is_llava(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of transformers' own LlavaForConditionalGeneration."""
    return raw.get("model_type") == "llava"


def _legacy_config(raw: Mapping[str, Any], path: Path, sources: Path | None) -> dict[str, Any]:
    """The tower's config lies beside its weights, or in the repository that `mm_vision_tower` names."""
    beside = path.parent / "vision_tower" / "config.json"
    name = str(raw.get("mm_vision_tower") or "")
    vision = read_json_object(beside) if beside.exists() else _named_config(name, sources)
    if vision is None:
        raise CheckpointError(f"{beside}: no such file. Give --sources DIR with {name}/config.json in it.")
    return factory_config(raw, vision)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises:
        CheckpointError: the file is missing, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. A checkpoint directory needs it.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def vision_config(raw: Mapping[str, Any], path: Path) -> VisionConfig:
    """The vision tower of a whole config.json."""
    values = resolved_part(raw, "vision_config", VISION_DEFAULTS, path)
    if (mlp_ratio := values.pop("mlp_ratio", None)) is not None:
        values["intermediate_size"] = values["hidden_size"] * mlp_ratio
    config = VisionConfig(
        **values,
        feature_layer=whole_number(raw, "vision_feature_layer", -2, path, minimum=-MAX_SIZE),
        select_strategy=str(raw.get("vision_feature_select_strategy", "patch")),
        name_or_path=str(raw.get("vision_model_name_or_path") or "").removeprefix("mof:"),
        has_head=raw["vision_config"].get("vision_use_head", True) is not False,
    )
    if config.select_strategy not in ("patch", "cls_patch"):
        raise UnsupportedModelError(
            f"{path}: vision_feature_select_strategy {config.select_strategy!r} is not supported. "
            "Supported: patch, cls_patch."
        )
    if not 0 <= config.num_used_layers <= config.num_hidden_layers:
        raise CheckpointError(
            f"{path}: vision_feature_layer {config.feature_layer} does not exist in a tower of "
            f"{config.num_hidden_layers} layers."
        )
    if config.hidden_size % config.num_attention_heads or config.num_tokens < 1:
        raise CheckpointError(f"{path}: vision_config has sizes that do not fit together: {config}.")
    return config


def _second_vision(raw: Mapping[str, Any], path: Path, sources: Path | None) -> VisionConfig | None:
    """A MoF's DINOv2, whose config is in no checkpoint: from `sources`, or of a public tower."""
    name = str(raw.get("vision_model_name_or_path2") or "").removeprefix("mof:")
    if not name:
        return None
    found = _named_config(name, sources)
    second = PUBLIC_TOWERS.get(name) if found is None else found
    if second is None:
        raise CheckpointError(
            f"{path}: the config of the second tower {name!r} is in no checkpoint. Give --sources DIR with "
            f"{name}/config.json in it. Known without: {', '.join(PUBLIC_TOWERS)}."
        )
    return vision_config({**raw, "vision_config": second, "vision_model_name_or_path": name}, path)


def _connector_config(raw: Mapping[str, Any], path: Path, sources: Path | None) -> ConnectorConfig:
    bert = _named_config("google-bert/bert-base-uncased", sources) or {}
    known = {item.name for item in fields(BertSizes)}
    return ConnectorConfig(
        type=str(raw.get("connector_type")),
        num_queries=whole_number(raw, "num_queries", 128, path),
        num_layers=whole_number(raw, "num_resampler_layers", 3, path),
        bert=BertSizes(**{key: value for key, value in bert.items() if key in known}),
    )


def _named_config(name: str, sources: Path | None) -> dict[str, Any] | None:
    """`<sources>/<name>/config.json`, where there is one."""
    if sources is None or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    path = sources / name / "config.json"
    return read_json_object(path) if path.exists() else None


def language_config(raw: Mapping[str, Any], path: Path) -> LanguageConfig:
    """The language model of a whole config.json."""
    values = resolved_part(raw, "text_config", LANGUAGE_DEFAULTS, path)
    family = values["architecture"]
    common = _openelm_sizes(values, path) if family == "openelm" else _common_sizes(values)
    config = LanguageConfig(
        architecture=family,
        vocab_size=values["vocab_size"],
        tie_word_embeddings=values["tie_word_embeddings"],
        bos_token_id=values["bos_token_id"],
        eos_token_id=values["eos_token_id"],
        name_or_path=str(raw.get("tokenizer_name_or_path") or raw.get("llm_model_name_or_path") or ""),
        values=values,
        **common,
    )
    odd_width = family != "openelm" and config.hidden_size % config.num_attention_heads
    if odd_width or config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2:
        raise CheckpointError(f"{path}: text_config has head counts that do not fit together: {config}.")
    return config


def _common_sizes(values: dict[str, Any]) -> dict[str, Any]:
    """Sizes of the families that use transformers' usual names."""
    heads = values["num_attention_heads"]
    head_dim = values.get("head_dim") or values["hidden_size"] // heads
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        **{name: values[name] for name in (*names, "max_position_embeddings", "rope_theta")},
        "num_key_value_heads": values["num_key_value_heads"] or heads,
        "head_dim": head_dim,
        "rotary_dim": int(head_dim * values.get("partial_rotary_factor", 1.0)),
        "norm_eps": values["rms_norm_eps"] if "rms_norm_eps" in values else values["layer_norm_eps"],
    }


def _openelm_sizes(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Sizes of OpenELM, whose layers differ in heads and feed-forward width."""
    layers = values["num_transformer_layers"]
    for name in ("num_query_heads", "num_kv_heads", "ffn_multipliers"):
        if len(values[name]) != layers:
            raise CheckpointError(
                f"{path}: text_config.{name} has {len(values[name])} values, expected one for each of "
                f"{layers} layers."
            )
    values["intermediate_sizes"] = [
        _make_divisible(multiplier * values["model_dim"], values["ffn_dim_divisor"])
        for multiplier in values["ffn_multipliers"]
    ]
    return {
        "hidden_size": values["model_dim"],
        "intermediate_size": max(values["intermediate_sizes"]),
        "num_hidden_layers": layers,
        "num_attention_heads": max(values["num_query_heads"]),
        "num_key_value_heads": max(values["num_kv_heads"]),
        "head_dim": values["head_dim"],
        "rotary_dim": values["head_dim"],
        "max_position_embeddings": values["max_context_length"],
        "norm_eps": _RMS_EPS_OF_OPENELM,
        "rope_theta": float(values["rope_freq_constant"]),
    }


def _make_divisible(value: float, divisor: int) -> int:
    """OpenELM's rounding of a width: to the nearest multiple, but never below nine tenths of it."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
