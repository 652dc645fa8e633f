"""What a config.json says -> `ModelConfig`, every size checked before anything is computed from it.

Source of the layout: docs/sources/tinyllava.md#config-file. `text_config` and `vision_config` are *diffs*: a
key equal to the defaults of its own transformers config class may be missing; `families.py` has those
defaults. Knows nothing of torch or transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from os.path import lexists  # a link that leads nowhere is not absent, but damaged
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from tinyllava_edge.errors import CheckpointError, MissingFileError, UnsupportedModelError

from .config import (
    BUDGETS_KEY,
    GRID_CONNECTORS,
    POOL_FACTOR,
    QFORMER_KEY,
    SECOND_TOWER_KEY,
    SIDECAR_FILE,
    BertSizes,
    ConnectorConfig,
    LanguageConfig,
    ModelConfig,
    VisionConfig,
)
from .families import FAMILIES, PUBLIC_TOWERS, TOWERS, VISION_ACTIVATIONS, Family
from .files import named_config, read_json_object
from .layouts import PROJECTOR_FILE, whole_file
from .llava_line import LINES, Line
from .nanovlm import OWN, NanoVlm
from .source_names import public_name
from .values import MAX_SIZE, Translated, place_of, resolved_part, said_as, whole_number

_RMS_EPS_OF_OPENELM = 1e-6  # a constant of its code


def model_config(
    raw: Mapping[str, Any],
    directory: Path,
    *,
    template: str | None = None,
    sources: Path | None = None,
    line: Line | None = None,
) -> ModelConfig:
    """A whole config.json, in TinyLLaVA Factory's words, and the `tinyllava_edge.json` beside it.

    Args:
        raw: what config.json says.
        directory: the checkpoint.
        template: name of the prompt template, in the place of the stored or inferred one.
        sources: where the configs are that the checkpoint only names (a MoF's second tower, Q-Former's BERT).
        line: of LLaVA's code, that the checkpoint is of.

    Raises:
        CheckpointError: a file is missing or not JSON, or a value is impossible.
        UnsupportedModelError: a part is not supported; the message lists what is.
    """
    path = directory / "config.json"
    check_model_type(raw, path)
    vision = vision_config(raw, path)
    language = language_config(raw, path)
    own = _nanovlm(raw)
    name, reason = own.template if own else _inferred_template(directory, language, line)
    if template:
        name, reason = template, "given by --template"
    max_length = whole_number(raw, "tokenizer_model_max_length", language.max_position_embeddings, path)
    aspect = raw.get("image_aspect_ratio", "square")
    if aspect not in ("square", "pad"):
        raise UnsupportedModelError(f"{path}: image_aspect_ratio is {aspect!r}. Supported: square, pad.")
    second, connector = second_vision(raw, path, sources), connector_config(raw, path, sources)
    if (second is None) == (connector.type == "mof_mlp"):
        raise UnsupportedModelError(
            f"{path}: connector_type {connector.type!r} with {1 if second is None else 2} vision tower(s). "
            "mof_mlp joins two towers (vision_model_name_or_path2), every other connector takes one."
        )
    if second is not None and vision.num_tokens != second.num_tokens_at(vision.image_size):
        raise UnsupportedModelError(
            f"{path}: the two towers give {vision.num_tokens} and "
            f"{second.num_tokens_at(vision.image_size)} tokens; mof_mlp joins as many of each."
        )
    config = ModelConfig(
        vision=vision,
        second_vision=second,
        connector=connector,
        language=language,
        image_aspect_ratio=aspect,
        tokenizer_max_length=max_length,
        template=name,
        template_reason=reason,
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or ""),
        processor=own.processor if own else None,
        extra_tokens=own.extra_tokens if own else (),
    )
    if not TOWERS[vision.architecture].any_size:
        config.check_grid(vision.image_size, str(path))
    return config


def check_model_type(raw: Mapping[str, Any], path: Path) -> None:
    """Refuse a config.json, in TinyLLaVA Factory's words, of another kind of model."""
    if raw.get("model_type") != "tinyllava":
        raise UnsupportedModelError(
            f"{path}: model_type is {raw.get('model_type')!r}, expected 'tinyllava'. "
            "Supported today: checkpoints saved by TinyLLaVA Factory or by `tinyllava-edge train`, "
            f"transformers' llava, nanoVLM's, and of LLaVA's code line {', '.join(LINES)}."
        )


def _inferred_template(directory: Path, language: LanguageConfig, line: Line | None) -> tuple[str, str]:
    """Name of the prompt template, which upstream never stores, and why it is that one."""
    sidecar = directory / SIDECAR_FILE
    stored = read_json_object(sidecar).get("template") if lexists(sidecar) else None
    if stored is not None:
        return str(stored), f"stored in {SIDECAR_FILE}"
    if line is not None and lexists(directory / PROJECTOR_FILE) and whole_file(directory) is None:
        return "plain", f"what {line.code} pretrains a projector with"
    name = f"the language model's family {language.architecture!r}"
    owner: Family | Line = language.family
    if line is not None and line.template:
        owner, name = line, f"what {line.code} trains its {line.family} models with"
    tokenizer = directory / "tokenizer_config.json"
    if owner.template_by_eos and tokenizer.exists():
        eos = read_json_object(tokenizer).get("eos_token")
        eos = str(eos.get("content") if isinstance(eos, dict) else eos)
        if eos in owner.template_by_eos:
            return owner.template_by_eos[eos], f"inferred from {name} and the tokenizer's EOS {eos!r}"
    return owner.template, f"inferred from {name}"


def _nanovlm(raw: Mapping[str, Any]) -> NanoVlm | None:
    own = raw.get(OWN)
    return own if isinstance(own, NanoVlm) else None


def vision_config(raw: Mapping[str, Any], path: Path) -> VisionConfig:
    """The vision tower of a whole config.json."""
    values, place = resolved_part(raw, "vision_config", TOWERS, path), place_of(raw, "vision_config", path)
    if (mlp_ratio := values.pop("mlp_ratio", None)) is not None:
        values["intermediate_size"] = values["hidden_size"] * mlp_ratio
    config = VisionConfig(
        **values,
        feature_layer=whole_number(raw, "vision_feature_layer", -2, path, minimum=-MAX_SIZE),
        select_strategy=str(raw.get("vision_feature_select_strategy", "patch")),
        name_or_path=str(raw.get("vision_model_name_or_path") or "").removeprefix("mof:"),
        final_norm=_nanovlm(raw) is not None,  # docs/sources/nanovlm.md#tower
        has_head=raw["vision_config"].get("vision_use_head", True) is not False,
    )
    if config.select_strategy not in ("patch", "cls_patch"):
        raise UnsupportedModelError(
            f"{path}: {said_as(raw, 'vision_feature_select_strategy')} {config.select_strategy!r} is not "
            "supported. Supported: patch, cls_patch."
        )
    if config.hidden_act not in VISION_ACTIVATIONS:
        raise UnsupportedModelError(
            f"{place}hidden_act {config.hidden_act!r} is not supported. "
            f"Supported: {', '.join(VISION_ACTIVATIONS)}."
        )
    if not 0 <= config.num_used_layers <= config.num_hidden_layers:
        raise CheckpointError(
            f"{path}: {said_as(raw, 'vision_feature_layer')} {config.feature_layer} does not exist in a "
            f"tower of {config.num_hidden_layers} layers."
        )
    if config.hidden_size % config.num_attention_heads or config.num_tokens < 1:
        raise CheckpointError(
            f"{place}hidden_size {config.hidden_size}, num_attention_heads {config.num_attention_heads}, "
            f"image_size {config.image_size} and patch_size {config.patch_size} do not fit together."
        )
    return config


def second_vision(raw: Mapping[str, Any], path: Path, sources: Path | None) -> VisionConfig | None:
    """A MoF's DINOv2, whose config is in ours only: else from `sources`, or of a public tower."""
    name = str(raw.get("vision_model_name_or_path2") or "").removeprefix("mof:")
    if not name:
        return None
    found = raw.get(SECOND_TOWER_KEY) or named_config(name, sources)
    public = public_name(name, PUBLIC_TOWERS)
    second = PUBLIC_TOWERS[public] if found is None and public else found
    if second is None:
        raise MissingFileError(
            f"{path}: the config of the second tower {name!r} is in no checkpoint. Give --sources DIR with "
            f"{name}/config.json in it. Known without: {', '.join(PUBLIC_TOWERS)}."
        )
    return vision_config({**raw, "vision_config": second, "vision_model_name_or_path": name}, path)


def connector_config(raw: Mapping[str, Any], path: Path, sources: Path | None) -> ConnectorConfig:
    """The connector of a whole config.json; Q-Former's sizes from `sources` where they are there."""
    own = _nanovlm(raw)
    own_bert = raw.get(QFORMER_KEY)
    if own_bert is not None and not isinstance(own_bert, dict):
        raise CheckpointError(f"{path}: {QFORMER_KEY} is not an object.")
    bert = own_bert or named_config("google-bert/bert-base-uncased", sources) or {}
    known = {item.name for item in fields(BertSizes)}
    for name in known - {"layer_norm_eps"}:
        whole_number(bert, name, 1, path)
    kind = str(raw.get("connector_type"))
    is_grid = kind in GRID_CONNECTORS
    return ConnectorConfig(
        type=kind,
        factor=own.factor
        if own
        else whole_number(raw, "connector_factor", POOL_FACTOR, path)
        if is_grid
        else 1,
        budgets=_budgets(raw, kind, path),
        num_queries=whole_number(raw, "num_queries", 128, path),
        num_layers=whole_number(raw, "num_resampler_layers", 3, path),
        bert=BertSizes(**{key: value for key, value in bert.items() if key in known}),
    )


def with_budgets(raw: Mapping[str, Any], budgets: Sequence[int], path: Path) -> dict[str, Any]:
    """A config.json whose connector is to learn other numbers of visual tokens, on the whole grid of patches.

    Raises:
        UnsupportedModelError: its connector is not `avg_pool`, nor the MLP that this has behind its pooling.
    """
    kind, tower = raw.get("connector_type"), raw.get("vision_config", {}).get("model_type")
    if kind not in ("avg_pool", "mlp2x_gelu"):
        raise UnsupportedModelError(
            f"{path}: --budgets needs a connector mlp2x_gelu or avg_pool, and connector_type is {kind!r:.40}."
        )
    whole = "patch" if tower in TOWERS and TOWERS[tower].prefix_tokens else "cls_patch"
    changed = {
        "connector_type": "avg_pool",
        BUDGETS_KEY: list(budgets),
        "vision_feature_select_strategy": whole,
    }
    values = {**raw, **changed}
    values.pop("connector_factor", None)
    return type(raw)(values, raw.own) if isinstance(raw, Translated) else values


def _budgets(raw: Mapping[str, Any], kind: str, path: Path) -> tuple[int, ...]:
    """Numbers of visual tokens that `avg_pool` was trained with, most first."""
    found = raw.get(BUDGETS_KEY)
    if found is None:
        return ()
    if kind != "avg_pool":
        raise CheckpointError(f"{path}: {BUDGETS_KEY} is of connector_type avg_pool, not {kind!r:.40}.")
    is_list = isinstance(found, list) and all(type(each) is int and 0 < each <= MAX_SIZE for each in found)
    if not is_list or not found or len(set(found)) != len(found):
        raise CheckpointError(
            f"{path}: {BUDGETS_KEY} = {shown(found)} is no list of different numbers of visual tokens."
        )
    return tuple(sorted(found, reverse=True))


def language_config(raw: Mapping[str, Any], path: Path) -> LanguageConfig:
    """The language model of a whole config.json."""
    values, place = resolved_part(raw, "text_config", FAMILIES, path), place_of(raw, "text_config", path)
    family, eos = values["architecture"], values["eos_token_id"]
    common = _openelm_sizes(values, path) if FAMILIES[family].layers_differ else _common_sizes(values)
    if FAMILIES[family].window_ends_context and values["sliding_window"] is not None:
        common["max_position_embeddings"] = min(common["max_position_embeddings"], values["sliding_window"])
    config = LanguageConfig(
        architecture=family,
        vocab_size=values["vocab_size"],
        tie_word_embeddings=values["tie_word_embeddings"],
        bos_token_id=values["bos_token_id"],
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        name_or_path=str(raw.get("tokenizer_name_or_path") or raw.get("llm_model_name_or_path") or ""),
        values=values,
        **common,
    )
    heads = config.num_attention_heads
    rest = config.hidden_size % heads if config.family.defaults.get("head_dim") is None else 0
    counts = [(heads, config.num_key_value_heads)]
    if config.family.layers_differ:
        counts = list(zip(values["num_query_heads"], values["num_kv_heads"], strict=True))
    if rest or any(queries % keys for queries, keys in counts) or config.head_dim % 2:
        raise CheckpointError(
            f"{place}hidden_size {config.hidden_size}, num_attention_heads {heads}, num_key_value_heads "
            f"{config.num_key_value_heads} and head_dim {config.head_dim} do not fit together."
        )
    if config.rotary_dim % 2 or not 2 <= config.rotary_dim <= config.head_dim:
        raise CheckpointError(
            f"{place}partial_rotary_factor gives RoPE {config.rotary_dim} of a head's "
            f"{config.head_dim} values; it turns pairs, at least one and at most the whole head."
        )
    if max(config.eos_token_ids, default=0) >= config.vocab_size:
        raise CheckpointError(f"{place}eos_token_id {eos} is no row of a vocabulary of {config.vocab_size}.")
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
