"""OpenELM: layers that differ in heads and width, fused qkv, norms of queries and keys, tied head.

Names and keys: llama.cpp, src/models/openelm.cpp (LLM_ARCH_OPENELM). The checkpoint fuses gate and up as one
matrix [gate | up]; the file keeps them apart.
"""

import torch

from tinyllava_edge.checkpoint.config import LanguageConfig

from .base import GgufArchitecture, TensorRule
from .decoder import Rules, standard_metadata

_FUSED = "ffn.proj_1.weight"


def _metadata(config: LanguageConfig) -> dict[str, int | float | str | list[int]]:
    return {
        **standard_metadata(config),
        "feed_forward_length": list(config.values["intermediate_sizes"]),
        "attention.head_count": list(config.values["num_query_heads"]),
        "attention.head_count_kv": list(config.values["num_kv_heads"]),
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }


def _tensors(config: LanguageConfig) -> dict[str, TensorRule]:
    hidden, head_dim, values = config.hidden_size, config.head_dim, config.values
    rules = Rules()
    rules.add("transformer.token_embeddings", "token_embd", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        source, name = f"transformer.layers.{layer}", f"blk.{layer}"
        heads, kv_heads = values["num_query_heads"][layer], values["num_kv_heads"][layer]
        inner, fused = values["intermediate_sizes"][layer], (heads + 2 * kv_heads) * head_dim
        rules.add(f"{source}.attn_norm", f"{name}.attn_norm", hidden)
        rules.add(f"{source}.attn.qkv_proj", f"{name}.attn_qkv", fused, hidden)
        rules.add(f"{source}.attn.q_norm", f"{name}.attn_q_norm", head_dim)
        rules.add(f"{source}.attn.k_norm", f"{name}.attn_k_norm", head_dim)
        rules.add(f"{source}.attn.out_proj", f"{name}.attn_output", hidden, heads * head_dim)
        rules.add(f"{source}.ffn_norm", f"{name}.ffn_norm", hidden)
        rules.add(f"{source}.ffn.gate", f"{name}.ffn_gate", inner, hidden)
        rules.add(f"{source}.ffn.up", f"{name}.ffn_up", inner, hidden)
        rules.add(f"{source}.ffn.proj_2", f"{name}.ffn_down", hidden, inner)
    rules.add("transformer.norm", "output_norm", hidden)
    return rules.tensors


def _split(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    if not name.endswith(_FUSED):
        return [(name, tensor)]
    stem = name.removesuffix("proj_1.weight")
    gate, up = tensor.chunk(2)
    return [(f"{stem}gate.weight", gate), (f"{stem}up.weight", up)]


ARCHITECTURE = GgufArchitecture(metadata=_metadata, tensors=_tensors, split=_split)
