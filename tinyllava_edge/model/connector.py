"""The connectors, keyed by the exact `connector_type` (docs/sources/tinyllava.md#connectors)."""

import re
from collections.abc import Callable
from math import isqrt

import torch
from torch import nn

from tinyllava_edge.checkpoint.config import ConnectorConfig
from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

from .qformer import QFormer
from .resampler import Resampler

_MLP = re.compile(r"mlp([1-9]\d?)x_gelu")


def build_connector(config: ConnectorConfig, vision_hidden: int, language_hidden: int) -> nn.Module:
    """Build a connector [batch, tokens, vision_hidden] -> [batch, tokens', language_hidden].

    Parameter names are upstream's behind `connector._connector.`.

    Raises:
        UnsupportedModelError: the type is not known; the message lists those that are.
        CheckpointError: `identity` between two different widths.
    """
    match config.type:
        case "identity" if vision_hidden == language_hidden:
            return nn.Identity()
        case "identity":
            raise CheckpointError(
                f"connector_type 'identity' needs equal widths, found {vision_hidden} (vision tower) and "
                f"{language_hidden} (language model)."
            )
        case "linear":
            return nn.Linear(vision_hidden, language_hidden)
        case "mof_mlp":
            return MofMlp(vision_hidden, language_hidden)
        case kind if kind in _SIZED:
            return _SIZED[kind](config, vision_hidden, language_hidden)
    if mlp := _MLP.fullmatch(config.type):
        return _mlp(int(mlp[1]), vision_hidden, language_hidden)
    raise UnsupportedModelError(
        f"connector_type {config.type!r} is not supported. "
        f"Supported: identity, linear, mof_mlp, {', '.join(_SIZED)}, mlpNx_gelu (N = 1, 2, ...)."
    )


class PixelShuffle(nn.Module):
    """Each square of factor x factor tokens becomes one, row by row, and is projected without a bias.

    Source: docs/sources/nanovlm.md#projector.
    """

    def __init__(self, config: ConnectorConfig, vision_hidden: int, language_hidden: int) -> None:
        super().__init__()
        self.factor = config.factor
        self.proj = nn.Linear(vision_hidden * config.factor**2, language_hidden, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[batch, side * side, vision_hidden] -> [batch, (side / factor)^2, language_hidden]."""
        split = _squares(features, self.factor).permute(0, 1, 3, 2, 4, 5)
        rows: torch.Tensor = self.proj(split.flatten(3).flatten(1, 2))
        return rows


class AveragePool(nn.Sequential):
    """The mean of each square of factor x factor patches, then `mlp2x_gelu`, whose parameter names it has.

    Source: docs/sources/visual_tokens.md#average-pooling.
    """

    def __init__(self, config: ConnectorConfig, vision_hidden: int, language_hidden: int) -> None:
        super().__init__(*_mlp(2, vision_hidden, language_hidden))
        self.factor = config.factor
        self.budgets = config.budgets

    def forward(self, features: torch.Tensor, tokens: int | None = None) -> torch.Tensor:
        """[batch, side * side, vision_hidden] -> [batch, tokens, language_hidden].

        `tokens`: of its budgets; None is the first of them, or (side / factor)^2 where it has none.
        """
        side, factor = isqrt(features.shape[1]), self.factor
        if self.budgets:
            factor = side // isqrt(tokens or self.budgets[0])
        rows = _squares(features, factor).mean(dim=(2, 4)).flatten(1, 2)
        for layer in self:
            rows = layer(rows)
        return rows


def _squares(features: torch.Tensor, factor: int) -> torch.Tensor:
    """[batch, side * side, hidden], row by row -> [batch, side / f, f, side / f, f, hidden]; factor f."""
    squares = isqrt(features.shape[1]) // factor
    return features.reshape(features.shape[0], squares, factor, squares, factor, features.shape[2])


class MofMlp(nn.Module):
    """Two MLPs for the two halves of a mixture of features, interleaved token by token: CLIP first."""

    def __init__(self, vision_hidden: int, language_hidden: int) -> None:
        super().__init__()
        self.clip = _mlp(2, vision_hidden, language_hidden)
        self.dinov2 = _mlp(2, vision_hidden, language_hidden)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[batch, clip tokens then dinov2 tokens, vision_hidden] -> [batch, tokens, language_hidden]."""
        clip, dinov2 = features.chunk(2, dim=1)
        return torch.stack([self.clip(clip), self.dinov2(dinov2)], dim=2).flatten(1, 2)


def _mlp(depth: int, vision_hidden: int, language_hidden: int) -> nn.Sequential:
    """Linear, then depth - 1 times GELU (the exact one, with erf) and Linear."""
    layers: list[nn.Module] = [nn.Linear(vision_hidden, language_hidden)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(language_hidden, language_hidden)]
    return nn.Sequential(*layers)


# Connectors with sizes of their own in config.json.
_SIZED: dict[str, Callable[[ConnectorConfig, int, int], nn.Module]] = {
    "resampler": Resampler,
    "qformer": QFormer,
    "avg_pool": AveragePool,
    "pixel_shuffle": PixelShuffle,
}
