"""First weights of a vision tower that has few pictures and little time to learn from.

The tower stays what SigLIP's architecture says; only where it starts from differs from transformers' choice.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name

from tinyllava_edge.model.vision_tower import VisionTower

_NOISE_FLOOR = 0.3  # standard deviation added to that of every patch component, so that noise is not blown up
_PATCH_SCALE, _POSITION_SCALE, _LONGEST_PERIOD = 0.5, 0.5, 50.0


@torch.no_grad()
def initialise_tower(tower: VisionTower, pixels: torch.Tensor, generator: torch.Generator) -> None:
    """Patches decorrelated, positions as waves, attention as in trained towers.

    Args:
        tower: of the SigLIP architecture.
        pixels: pictures [n, 3, height, width] in -1 ... 1 to take the statistics of patches from.
        generator: of everything random.
    """
    model: Any = tower.model
    model = getattr(model, "vision_model", model)  # transformers 4
    _whiten_patches(model.embeddings.patch_embedding, pixels, generator)
    positions = model.embeddings.position_embedding.weight
    side = tower.config.image_size // tower.config.patch_size
    positions.copy_(_waves(side, positions.shape[1]) * _POSITION_SCALE)
    for layer in model.encoder.layers:
        _mimic_attention(layer.self_attn, generator)


def _whiten_patches(convolution: Any, pixels: torch.Tensor, generator: torch.Generator) -> None:
    """The principal components of patches at about equal strength, turned at random."""
    size, width = convolution.kernel_size[0], convolution.out_channels
    patches = F.unfold(pixels, size, stride=size).transpose(1, 2).flatten(0, 1)
    patches = patches[torch.randperm(len(patches), generator=generator)[:12_000]]
    mean = patches.mean(0)
    _, strengths, directions = torch.linalg.svd(patches - mean, full_matrices=False)
    deviations = strengths[:width, None] / len(patches) ** 0.5
    whitened = directions[:width] / (deviations + _NOISE_FLOOR)
    turn, _ = torch.linalg.qr(torch.randn(width, len(whitened), generator=generator))
    weight = turn @ whitened * _PATCH_SCALE
    convolution.weight.copy_(weight.view_as(convolution.weight))
    convolution.bias.copy_(-weight @ mean)


def _waves(side: int, width: int) -> torch.Tensor:
    """[side * side, width]: sines and cosines of row and column (Dosovitskiy et al. 2021, appendix D.4)."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frequencies = _LONGEST_PERIOD ** -(torch.arange(width // 4) / (width // 4))
    angles = [place.flatten()[:, None] * frequencies for place in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def _mimic_attention(attention: Any, generator: torch.Generator) -> None:
    """Queries that look for keys like themselves, values that subtract: what training makes of them.

    Source: Trockman and Kolter 2023, "Mimetic initialization of self-attention layers", section 4.
    """
    width = attention.embed_dim
    size = width // attention.num_heads

    def product(scale: float, identity: float) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(width, width, generator=generator) * scale / width**0.5
        left, strengths, right = torch.linalg.svd(noise + identity * torch.eye(width))
        return left * strengths.sqrt(), strengths.sqrt()[:, None] * right

    for head in range(attention.num_heads):
        rows = slice(head * size, (head + 1) * size)
        left, right = product(0.7, 0.7)
        attention.q_proj.weight[rows] = left[:, :size].T
        attention.k_proj.weight[rows] = right[:size]
    left, right = product(0.4, -0.4)
    attention.v_proj.weight.copy_(right)
    attention.out_proj.weight.copy_(left)
