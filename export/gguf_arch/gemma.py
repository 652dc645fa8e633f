"""Gemma: RMS norms stored as weight - 1, a tied head, and embeddings scaled inside the graph.

Names and keys: llama.cpp, src/models/gemma.cpp (LLM_ARCH_GEMMA). Its graph scales every row that comes in by
sqrt(hidden), injected picture rows too, as upstream does. It computes GELU from a float16 table.
"""

import math

import torch

from tinyllava_edge.config import LanguageConfig
from tinyllava_edge.errors import UnsupportedModelError

from .base import GgufArchitecture, TensorRule
from .decoder import Rules, add_gated_feed_forward, attention_shapes, rms_metadata


def _metadata(config: LanguageConfig) -> dict[str, int | float]:
    activation = config.values["hidden_activation"]
    if activation not in (None, "gelu_pytorch_tanh") or config.values["attention_bias"]:
        raise UnsupportedModelError(
            f"text_config: hidden_activation {activation!r}, attention_bias "
            f"{config.values['attention_bias']}; "
            "llama.cpp's gemma graph computes only gelu_pytorch_tanh without biases."
        )
    if not config.tie_word_embeddings:
        raise UnsupportedModelError(
            "text_config: llama.cpp's gemma graph has no head of its own, only a tied one."
        )
    return {
        **rms_metadata(config),
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }


def _tensors(config: LanguageConfig) -> dict[str, TensorRule]:
    hidden = config.hidden_size
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    rules = Rules()
    rules.add("model.embed_tokens.weight", "token_embd.weight", (config.vocab_size, hidden))
    for layer in range(config.num_hidden_layers):
        source, name = f"model.layers.{layer}", f"blk.{layer}"
        _add_norm(rules, f"{source}.input_layernorm", f"{name}.attn_norm", hidden)
        for projection, shape in attention_shapes(config).items():
            rules.add(f"{source}.self_attn.{projection}.weight", f"{name}.{names[projection]}.weight", shape)
        _add_norm(rules, f"{source}.post_attention_layernorm", f"{name}.ffn_norm", hidden)
        add_gated_feed_forward(rules, config, layer)
    _add_norm(rules, "model.norm", "output_norm", hidden)
    return rules.tensors


def _add_norm(rules: Rules, source: str, name: str, hidden: int) -> None:
    rules.tensors[f"{source}.weight"] = TensorRule(
        name=f"{name}.weight",
        shape=(hidden,),
        convert=_plus_one,
        restore=_minus_one,
        tolerance=4e-6,  # float32 around 1 + weight, up to 64
    )


def _plus_one(weight: torch.Tensor) -> torch.Tensor:
    return weight + 1


def _minus_one(weight: torch.Tensor) -> torch.Tensor:
    return weight - 1


def _embedding_scale(config: LanguageConfig) -> float:
    return math.sqrt(config.hidden_size)


ARCHITECTURE = GgufArchitecture(
    name="gemma", metadata=_metadata, tensors=_tensors, embedding_scale=_embedding_scale
)
