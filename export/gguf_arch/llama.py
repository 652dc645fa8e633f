"""The Llama family: TinyLlama, SmolLM2, and our own nano.

Names and keys: llama.cpp, gguf-py/gguf/constants.py and src/llama-arch.cpp (LLM_ARCH_LLAMA). llama.cpp's RoPE
for this architecture turns neighbouring pairs (0,1), (2,3), ...; transformers turns (i, i + head_dim / 2).
So the rows of q and k are reordered within each head. Llama 3's stretched RoPE is a tensor of divisors there.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from tinyllava_edge.checkpoint.config import LanguageConfig
from tinyllava_edge.checkpoint.families import ROPE_DIVISORS
from tinyllava_edge.checkpoint.rope import rope_divisors

from .base import GgufArchitecture, TensorRule
from .decoder import standard_metadata, standard_tensors


def interleaved_tensors(config: LanguageConfig) -> Mapping[str, TensorRule]:
    """Rules of Llama's layers, the rows of q and k reordered."""
    rules = standard_tensors(config, bias="qkvo" if config.values.get("attention_bias") else "")
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return {
        name: replace(rule, convert=partial(interleave, heads=count), restore=partial(separate, heads=count))
        if (count := heads.get(name.split(".")[-2]))
        else rule
        for name, rule in rules.items()
    }


def _computed(config: LanguageConfig) -> dict[str, list[float]]:
    scaling = config.rope_scaling
    if scaling is None or scaling["rope_type"] != "llama3":
        return {}
    return {ROPE_DIVISORS: rope_divisors(scaling, config.rope_theta, config.rotary_dim)}


def interleave(tensor: torch.Tensor, *, heads: int) -> torch.Tensor:
    """Rows (0, 1, ... | d/2, d/2 + 1, ...) of each head to (0, d/2, 1, d/2 + 1, ...)."""
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])  # [heads, 2, d/2, ...]
    return halves.transpose(1, 2).reshape(tensor.shape)


def separate(tensor: torch.Tensor, *, heads: int) -> torch.Tensor:
    """Undo `interleave`: the even rows of each head first, then the odd ones."""
    per_head = tensor.reshape(heads, -1, *tensor.shape[1:])  # [heads, d, ...]
    return torch.cat([per_head[:, 0::2], per_head[:, 1::2]], dim=1).reshape(tensor.shape)


ARCHITECTURE = GgufArchitecture(metadata=standard_metadata, tensors=interleaved_tensors, computed=_computed)
