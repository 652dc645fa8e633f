"""The `resampler` connector: learned latents that attend to the picture's tokens (Perceiver).

Source: docs/sources/tinyllava.md#resampler. Its width is the language model's.
"""

import torch
from torch import nn

from tinyllava_edge.checkpoint.config import ConnectorConfig

NUM_HEADS = 8
HEAD_DIM = 64


class Resampler(nn.Module):
    """[batch, tokens, vision_hidden] -> [batch, num_queries, language_hidden]."""

    def __init__(self, config: ConnectorConfig, vision_hidden: int, language_hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_hidden, language_hidden)
        self.latents = nn.Parameter(torch.randn(config.num_queries, language_hidden))
        self.layers = nn.ModuleList(
            nn.ModuleList([LatentAttention(language_hidden), _feed_forward(language_hidden)])
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(language_hidden)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Both blocks of a layer add to the latents; the picture's tokens stay as they are."""
        media = self.linear(features)
        latents = self.latents.expand(features.shape[0], -1, -1)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            latents = attention(media, latents) + latents
            latents = feed_forward(latents) + latents
        output: torch.Tensor = self.norm(latents)
        return output


class LatentAttention(nn.Module):
    """Latents attend to the picture and to themselves: 8 heads of 64, whatever the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = NUM_HEADS * HEAD_DIM
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, media: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width], [batch, queries, width] -> [batch, queries, width]."""
        media, latents = self.norm_media(media), self.norm_latents(latents)
        key, value = self.to_kv(torch.cat([media, latents], dim=1)).chunk(2, dim=-1)
        query = _heads(self.to_q(latents))
        attended = nn.functional.scaled_dot_product_attention(query, _heads(key), _heads(value))
        output: torch.Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return output


def _heads(rows: torch.Tensor) -> torch.Tensor:
    """[batch, rows, heads * 64] -> [batch, heads, rows, 64]."""
    return rows.view(*rows.shape[:2], NUM_HEADS, HEAD_DIM).transpose(1, 2)


def _feed_forward(width: int) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )
