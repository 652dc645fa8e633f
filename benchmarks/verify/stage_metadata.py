"""Ladder stage 2: what the manifest and the GGUF files say of the model, against the resolved config."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from tinyllava_edge.bounds import at_most
from tinyllava_edge.checkpoint.config import ModelConfig

from .ladder import Ladder, StageResult, judge
from .reference_checkpoint import CheckpointReference
from .stage_weights import language_path
from .upstream_nanovlm import NanoVlmTokenizer
from .upstream_text import UpstreamTokenizer

_JUDGED_BY_PIXELS = ("mean", "std")  # the pixels stage says which channel, and by how much
_EPSILON = {"layer": "layer_norm_epsilon", "rms": "layer_norm_rms_epsilon"}


def check_metadata(ladder: Ladder) -> Iterator[StageResult]:
    """Every fact in the manifest and in the GGUF files is the resolved config's."""
    reference = ladder.file_reference()
    side = reference.pixels(0).shape[-1]
    expected = _config_facts(reference.config, side)
    preprocessing = reference.processor.settings()
    expected |= {
        f"vision.preprocessing.{key}": value
        for key, value in preprocessing.items()
        if key not in _JUDGED_BY_PIXELS
    }
    yield _judge_facts("manifest", _manifest_facts(ladder), expected)
    if ladder.reads_language != "gguf":  # an IR says nothing of the model but its graph
        return
    from .gguf_files import read_facts

    for variant in ladder.language:
        expected = _expected_metadata(reference, variant.name)
        yield _judge_facts(variant.name, read_facts(language_path(ladder, variant)), expected)


def _judge_facts(variant: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> StageResult:
    wrong = [key for key, value in expected.items() if found.get(key) != value]
    return judge(
        "metadata",
        variant,
        {"wrong_values": len(wrong)},
        detail=f"{len(expected)} values",
        cause=lambda: "; ".join(_difference(key, found.get(key), expected[key]) for key in wrong[:3]),
        gates=(at_most("wrong_values", 0),),
    )


def _difference(key: str, found: Any, expected: Any) -> str:
    if isinstance(expected, list) and isinstance(found, list):
        if len(found) != len(expected):
            return f"{key} has {len(found)} entries, expected {len(expected)}"
        index = next(i for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
        return f"{key}[{index}] is {found[index]!r}, expected {expected[index]!r}"
    return f"{key} is {found!r}, expected {expected!r}"


def _config_facts(config: ModelConfig, side: int) -> dict[str, Any]:
    vision, language = config.vision, config.language
    return {
        "vision.image_size": side,  # the processor's: DINOv2 takes other sizes than its config's
        "vision.feature_layer": vision.feature_layer,
        "vision.drop_first": vision.select_strategy == "patch",
        "vision.hidden_size": language.hidden_size,
        "vision.num_tokens": config.num_picture_tokens(side),
        "language.architecture": language.architecture,
        "language.hidden_size": language.hidden_size,
        "language.vocab_size": language.vocab_size,
        "language.num_hidden_layers": language.num_hidden_layers,
        "language.num_attention_heads": language.num_attention_heads,
        "language.num_key_value_heads": language.num_key_value_heads,
        "language.head_dim": language.head_dim,
        "language.context_length": language.max_position_embeddings,
        "language.embedding_scale": language.embedding_scale,
    }


def _manifest_facts(ladder: Ladder) -> dict[str, Any]:
    manifest = ladder.bundle.manifest
    facts: dict[str, Any] = {}
    for part in ("vision", "language"):
        facts |= {f"{part}.{key}": value for key, value in getattr(manifest, part).model_dump().items()}
    preprocessing = asdict(manifest.vision.preprocessing)
    return facts | {f"vision.preprocessing.{key}": value for key, value in preprocessing.items()}


def _expected_metadata(reference: CheckpointReference, variant: str) -> dict[str, Any]:
    from .gguf_files import FILE_TYPES

    config, pieces = reference.config.language, reference.tokenizer.pieces
    name = config.family.llamacpp
    hyperparameters: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        f"attention.{_EPSILON[config.family.norm]}": float(np.float32(config.norm_eps)),
        "rope.freq_base": float(np.float32(config.rope_theta)),
        "rope.dimension_count": config.rotary_dim,
    }
    if config.family.layers_differ:
        hyperparameters["feed_forward_length"] = config.values["intermediate_sizes"]
        hyperparameters["attention.head_count"] = config.values["num_query_heads"]
        hyperparameters["attention.head_count_kv"] = config.values["num_kv_heads"]
    for key, kind in config.family.keys.items():
        if (name := key.rpartition(".")[2]) in config.values:  # one of another name is judged by the logits
            value = config.values[name]
            hyperparameters[key] = float(np.float32(value)) if kind == "float32" else value
    scaling = config.rope_scaling
    if scaling is not None and scaling["rope_type"] == "linear":
        hyperparameters["rope.scaling.type"] = "linear"
        hyperparameters["rope.scaling.factor"] = float(np.float32(scaling["factor"]))
    return {
        "general.architecture": name,
        "general.file_type": FILE_TYPES.get(variant),
        **{f"{name}.{key}": value for key, value in hyperparameters.items()},
        "tokenizer.ggml.bos_token_id": reference.tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": reference.tokenizer.eos_id,
        # Rows past the tokenizer's last piece have tokens that no text gives; only their number counts.
        "tokenizer.ggml.tokens": pieces[: config.vocab_size],
        "number of tokens": config.vocab_size,
        "number of token types": config.vocab_size,
        **_vocabulary(reference.tokenizer, config.vocab_size),
    }


def _vocabulary(tokenizer: UpstreamTokenizer | NanoVlmTokenizer, vocab_size: int) -> dict[str, Any]:
    """What decides how llama.cpp's own programs tokenize."""
    facts: dict[str, Any] = {"tokenizer.ggml.add_bos_token": tokenizer.bos_id is not None}
    if tokenizer.scores is not None:
        return {
            **facts,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": tokenizer.scores[:vocab_size],
        }
    return {**facts, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": tokenizer.merges}
