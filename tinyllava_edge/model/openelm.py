"""OpenELM in torch. Upstream needs remote code for it; we do not.

Source: docs/sources/tinyllava.md#openelm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from tinyllava_edge.checkpoint.config import LanguageConfig


@dataclass(frozen=True)
class CausalOutput:
    """What callers of transformers' models read."""

    logits: torch.Tensor  # [batch, positions, vocab]
    cache: Any  # a transformers cache, or None


class OpenElm(nn.Module):
    """OpenELM as a causal language model with a tied head.

    Attributes:
        checkpoints_layers: in training keep the input of each layer alone, and compute the layer again.
    """

    _no_split_modules = ("_Layer",)  # what FSDP shards one by one
    checkpoints_layers = False

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = _Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.token_embeddings.weight

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding, as transformers' models name it."""
        return self.transformer.token_embeddings

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        cache: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalOutput:
        """[batch, positions, hidden] -> logits; `cache` is a transformers cache, or None.

        Only of the last `logits_to_keep` positions, where it is not 0.
        """
        if cache is None and use_cache:
            cache = DynamicCache()
        start = 0 if cache is None else cache.get_seq_length()
        tables = rotary_table(self.config, start, start + inputs_embeds.shape[1])
        rotary = [table.to(inputs_embeds.device) for table in tables]
        rows = inputs_embeds
        for index, layer in enumerate(self.transformer.layers):
            if self.checkpoints_layers and self.training:
                rows = checkpoint(layer, rows, rotary, cache, index, use_reentrant=False)
            else:
                rows = layer(rows, rotary, cache, index)
        rows = self.transformer.norm(rows)
        return CausalOutput(self.lm_head(rows[:, -logits_to_keep:]), cache)


def rotary_table(config: LanguageConfig, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [positions, head_dim] of RoPE (arXiv 2104.09864) for positions start to end."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    angles = torch.outer(torch.arange(start, end, dtype=torch.float32), config.rope_theta**-exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


class _Transformer(nn.Module):
    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        values = config.values
        self.token_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        shapes = zip(
            values["num_query_heads"], values["num_kv_heads"], values["intermediate_sizes"], strict=True
        )
        self.layers = nn.ModuleList(_Layer(config, *shape) for shape in shapes)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)


class _Layer(nn.Module):
    def __init__(self, config: LanguageConfig, query_heads: int, kv_heads: int, intermediate: int) -> None:
        super().__init__()
        self.attn = _Attention(config, query_heads, kv_heads)
        self.ffn = _FeedForward(config.hidden_size, intermediate)
        self.attn_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(
        self, rows: torch.Tensor, rotary: Sequence[torch.Tensor], cache: Any, index: int
    ) -> torch.Tensor:
        rows = rows + self.attn(self.attn_norm(rows), rotary, cache, index)
        output: torch.Tensor = rows + self.ffn(self.ffn_norm(rows))
        return output


class _Attention(nn.Module):
    def __init__(self, config: LanguageConfig, query_heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_counts = (query_heads, kv_heads, kv_heads)
        self.head_dim = config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.head_counts) * self.head_dim, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
        self.out_proj = nn.Linear(query_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(
        self, rows: torch.Tensor, rotary: Sequence[torch.Tensor], cache: Any, index: int
    ) -> torch.Tensor:
        batch, count, _ = rows.shape
        heads = self.qkv_proj(rows).view(batch, count, -1, self.head_dim).transpose(1, 2)
        query, key, value = heads.split(self.head_counts, dim=1)
        query, key = _rotate(self.q_norm(query), rotary), _rotate(self.k_norm(key), rotary)
        if cache is not None:
            key, value = cache.update(key, value, index)
        past = key.shape[2] - count
        mask = torch.ones(count, key.shape[2], dtype=torch.bool, device=rows.device).tril(past)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, enable_gqa=True
        )
        output: torch.Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return output


def _rotate(heads: torch.Tensor, rotary: Sequence[torch.Tensor]) -> torch.Tensor:
    cosine, sine = rotary
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat([-second, first], dim=-1) * sine


class _FeedForward(nn.Module):
    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.proj_1 = nn.Linear(hidden, 2 * intermediate, bias=False)
        self.proj_2 = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        gate, up = self.proj_1(rows).chunk(2, dim=-1)
        output: torch.Tensor = self.proj_2(nn.functional.silu(gate) * up)
        return output
