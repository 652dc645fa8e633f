"""The Llama family: TinyLlama, SmolLM2, and our own nano.

Names and keys: llama.cpp, gguf-py/gguf/constants.py and src/llama-arch.cpp (LLM_ARCH_LLAMA). llama.cpp's RoPE
for this architecture turns neighbouring pairs (0,1), (2,3), ...; transformers turns (i, i + head_dim / 2).
So the rows of q and k are reordered within each head.
"""

from functools import partial

import torch

from tinyllava_edge.config import LanguageConfig

from .base import GgufArchitecture, TensorRule
from .decoder import (
    Rules,
    add_gated_feed_forward,
    attention_shapes,
    check_activation,
    rms_metadata,
)


def _metadata(config: LanguageConfig) -> dict[str, int | float]:
    check_activation(config, "silu")
    return rms_metadata(config)


def _tensors(config: LanguageConfig) -> dict[str, TensorRule]:
    hidden, vocab = config.hidden_size, config.vocab_size
    bias = bool(config.values["attention_bias"])
    rules = Rules()
    rules.add("model.embed_tokens.weight", "token_embd.weight", (vocab, hidden))
    for layer in range(config.num_hidden_layers):
        source, name = f"model.layers.{layer}", f"blk.{layer}"
        rules.add(f"{source}.input_layernorm.weight", f"{name}.attn_norm.weight", (hidden,))
        _add_attention(rules, config, layer, bias=bias)
        rules.add(f"{source}.post_attention_layernorm.weight", f"{name}.ffn_norm.weight", (hidden,))
        add_gated_feed_forward(rules, config, layer)
    rules.add("model.norm.weight", "output_norm.weight", (hidden,))
    if not config.tie_word_embeddings:
        rules.add("lm_head.weight", "output.weight", (vocab, hidden))
    return rules.tensors


def _add_attention(rules: Rules, config: LanguageConfig, layer: int, *, bias: bool) -> None:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    for projection, shape in attention_shapes(config).items():
        converts = {}
        if count := heads.get(projection):
            converts = {
                "convert": partial(interleave, heads=count),
                "restore": partial(separate, heads=count),
            }
        source = f"model.layers.{layer}.self_attn.{projection}"
        name = f"blk.{layer}.{names[projection]}"
        add = rules.add_pair if bias else rules.add_weight
        add(source, name, shape, **converts)


def interleave(tensor: torch.Tensor, *, heads: int) -> torch.Tensor:
    """Rows (0, 1, ... | d/2, d/2 + 1, ...) of each head to (0, d/2, 1, d/2 + 1, ...)."""
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])  # [heads, 2, d/2, ...]
    return halves.transpose(1, 2).reshape(tensor.shape)


def separate(tensor: torch.Tensor, *, heads: int) -> torch.Tensor:
    """Undo `interleave`: the even rows of each head first, then the odd ones."""
    per_head = tensor.reshape(heads, -1, *tensor.shape[1:])  # [heads, d, ...]
    return torch.cat([per_head[:, 0::2], per_head[:, 1::2]], dim=1).reshape(tensor.shape)


ARCHITECTURE = GgufArchitecture(name="llama", metadata=_metadata, tensors=_tensors)
