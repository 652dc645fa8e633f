"""The Llama family: TinyLlama, SmolLM2, and our own nano.

Names and keys: llama.cpp, gguf-py/gguf/constants.py and src/llama-arch.cpp (LLM_ARCH_LLAMA). llama.cpp's RoPE
for this architecture turns neighbouring pairs (0,1), (2,3), ...; transformers turns (i, i + head_dim / 2).
So the rows of q and k are reordered within each head.
"""

from functools import partial

import torch

from tinyllava_edge.config import LanguageConfig

from .base import GgufArchitecture, TensorRule


def _metadata(config: LanguageConfig) -> dict[str, int | float]:
    values: dict[str, int | float] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": config.head_dim,
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        values["attention.key_length"] = config.head_dim
        values["attention.value_length"] = config.head_dim
    return values


def _tensors(config: LanguageConfig) -> dict[str, TensorRule]:
    hidden, vocab = config.hidden_size, config.vocab_size
    rules = {"model.embed_tokens.weight": TensorRule(name="token_embd.weight", shape=(vocab, hidden))}
    for layer in range(config.num_hidden_layers):
        rules |= _layer(config, layer)
    rules["model.norm.weight"] = TensorRule(name="output_norm.weight", shape=(hidden,))
    if not config.tie_word_embeddings:
        rules["lm_head.weight"] = TensorRule(name="output.weight", shape=(vocab, hidden))
    return rules


def _layer(config: LanguageConfig, layer: int) -> dict[str, TensorRule]:
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    rules: dict[str, TensorRule] = {}

    def add(source: str, name: str, shape: tuple[int, ...], heads: int = 0) -> None:
        reorder = {"convert": partial(interleave, heads=heads), "restore": partial(separate, heads=heads)}
        rules[f"model.layers.{layer}.{source}"] = TensorRule(
            name=f"blk.{layer}.{name}", shape=shape, **(reorder if heads else {})
        )

    add("input_layernorm.weight", "attn_norm.weight", (hidden,))
    for source, name, size, heads in (
        ("q_proj", "attn_q", q_size, config.num_attention_heads),
        ("k_proj", "attn_k", kv_size, config.num_key_value_heads),
        ("v_proj", "attn_v", kv_size, 0),
    ):
        add(f"self_attn.{source}.weight", f"{name}.weight", (size, hidden), heads)
        if config.values["attention_bias"]:
            add(f"self_attn.{source}.bias", f"{name}.bias", (size,), heads)
    add("self_attn.o_proj.weight", "attn_output.weight", (hidden, q_size))
    if config.values["attention_bias"]:
        add("self_attn.o_proj.bias", "attn_output.bias", (hidden,))
    add("post_attention_layernorm.weight", "ffn_norm.weight", (hidden,))
    add("mlp.gate_proj.weight", "ffn_gate.weight", (inner, hidden))
    add("mlp.up_proj.weight", "ffn_up.weight", (inner, hidden))
    add("mlp.down_proj.weight", "ffn_down.weight", (hidden, inner))
    return rules


def interleave(tensor: torch.Tensor, *, heads: int) -> torch.Tensor:
    """Rows (0, 1, ... | d/2, d/2 + 1, ...) of each head to (0, d/2, 1, d/2 + 1, ...)."""
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])  # [heads, 2, d/2, ...]
    return halves.transpose(1, 2).reshape(tensor.shape)


def separate(tensor: torch.Tensor, *, heads: int) -> torch.Tensor:
    """Undo `interleave`: the even rows of each head first, then the odd ones."""
    per_head = tensor.reshape(heads, -1, *tensor.shape[1:])  # [heads, d, ...]
    return torch.cat([per_head[:, 0::2], per_head[:, 1::2]], dim=1).reshape(tensor.shape)


ARCHITECTURE = GgufArchitecture(name="llama", metadata=_metadata, tensors=_tensors)
