"""Published config.json files are read, and give as many weights as the models' pages say."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_config
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.gguf_arch import ARCHITECTURES

_NAMES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads"),
)
_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_QWEN = {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21, "rope_theta": 1e6}
_LLAMA3 = {"rope_theta": 5e5, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]}
_LLAMA32 = {
    **_LLAMA3,
    "tie_word_embeddings": True,
    "rope_scaling": {"rope_type": "llama3", "factor": 32.0, **_BANDS},
}
_LLAMA31 = {**_LLAMA3, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, **_BANDS}}
_GEMMA2 = {"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid", "sliding_window": 4096}
_NO_ROPE = {"no_rope_layers": [1, 1, 1, 0] * 9, "layer_types": ["full_attention"] * 36, "rope_theta": 5e6}
# Family, the sizes of `_NAMES`, further keys, weights in billions as the model's page on the hub shows them.
MODELS: dict[str, tuple[str, tuple[int, ...], dict[str, Any], float]] = {
    "Qwen2.5-0.5B": ("qwen2", (151936, 896, 4864, 24, 14, 2), {**_QWEN, "tie_word_embeddings": True}, 0.494),
    "Qwen2.5-1.5B": ("qwen2", (151936, 1536, 8960, 28, 12, 2), {**_QWEN, "tie_word_embeddings": True}, 1.54),
    "Qwen2.5-3B": ("qwen2", (151936, 2048, 11008, 36, 16, 2), {**_QWEN, "tie_word_embeddings": True}, 3.09),
    "Qwen2.5-7B": ("qwen2", (152064, 3584, 18944, 28, 28, 4), _QWEN, 7.62),
    "Qwen2.5-14B": ("qwen2", (152064, 5120, 13824, 48, 40, 8), _QWEN, 14.8),
    "Qwen2.5-32B": ("qwen2", (152064, 5120, 27648, 64, 40, 8), _QWEN, 32.8),
    "Qwen2.5-72B": ("qwen2", (152064, 8192, 29568, 80, 64, 8), _QWEN, 72.7),
    "TinyLlama-1.1B": ("llama", (32000, 2048, 5632, 22, 32, 4), {}, 1.1),
    "Llama-3.2-1B": ("llama", (128256, 2048, 8192, 16, 32, 8), {**_LLAMA32, "head_dim": 64}, 1.24),
    "Llama-3.2-3B": ("llama", (128256, 3072, 8192, 28, 24, 8), {**_LLAMA32, "head_dim": 128}, 3.21),
    "Llama-3.1-8B": ("llama", (128256, 4096, 14336, 32, 32, 8), _LLAMA31, 8.03),
    "SmolLM3-3B": ("smollm3", (128256, 2048, 11008, 36, 16, 4), {**_NO_ROPE, "eos_token_id": 128012}, 3.08),
    "Phi-3-mini-4k": ("phi3", (32064, 3072, 8192, 32, 32, 32), {"sliding_window": 2047}, 3.82),
    "Phi-4": (
        "phi3",
        (100352, 5120, 17920, 40, 40, 10),
        {"rope_theta": 250000, "sliding_window": None},
        14.7,
    ),
    "Gemma-2-2b": ("gemma2", (256000, 2304, 9216, 26, 8, 4), {**_GEMMA2, "query_pre_attn_scalar": 256}, 2.61),
    "Gemma-2-9b": (
        "gemma2",
        (256000, 3584, 14336, 42, 16, 8),
        {**_GEMMA2, "query_pre_attn_scalar": 256},
        9.24,
    ),
    "Gemma-2-27b": (
        "gemma2",
        (256000, 4608, 36864, 46, 32, 16),
        {**_GEMMA2, "head_dim": 128, "query_pre_attn_scalar": 144},
        27.2,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_published_config_is_read_and_has_as_many_weights(name: str, tmp_path: Path) -> None:
    family, sizes, more, billions = MODELS[name]
    config = tiny_config()
    config["text_config"] = {"model_type": family, **dict(zip(_NAMES, sizes, strict=True)), **more}
    (tmp_path / "config.json").write_text(json.dumps(config))
    language = Checkpoint(tmp_path).config.language
    architecture = ARCHITECTURES[family]
    assert architecture.metadata(language)["block_count"] == sizes[3]
    weights = sum(prod(rule.shape) for rule in architecture.tensors(language).values())
    assert float(f"{weights / 1e9:.3g}") == billions
    assert bool(architecture.computed(language)) == (
        more.get("rope_scaling", {}).get("rope_type") == "llama3"
    )
