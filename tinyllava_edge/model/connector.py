"""The connectors, keyed by the exact `connector_type` (spec/tinyllava.md section 1.4)."""

import re
from collections.abc import Callable

from torch import nn

from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

_MLP = re.compile(r"mlp([1-9]\d?)x_gelu")


def build_connector(connector_type: str, vision_hidden: int, language_hidden: int) -> nn.Module:
    """Build a connector [batch, tokens, vision_hidden] -> [batch, tokens, language_hidden].

    Parameter names are upstream's behind `connector._connector.`.

    Raises:
        UnsupportedModelError: the type is not known; the message lists those that are.
        CheckpointError: `identity` between two different widths.
    """
    if match := _MLP.fullmatch(connector_type):
        return _mlp(int(match[1]), vision_hidden, language_hidden)
    if connector_type not in CONNECTORS:
        raise UnsupportedModelError(
            f"connector_type {connector_type!r} is not supported. "
            f"Supported: {', '.join(CONNECTORS)}, mlpNx_gelu (N = 1, 2, ...)."
        )
    return CONNECTORS[connector_type](vision_hidden, language_hidden)


def _mlp(depth: int, vision_hidden: int, language_hidden: int) -> nn.Module:
    """Linear, then depth - 1 times GELU (the exact one, with erf) and Linear."""
    layers: list[nn.Module] = [nn.Linear(vision_hidden, language_hidden)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(language_hidden, language_hidden)]
    return nn.Sequential(*layers)


def _identity(vision_hidden: int, language_hidden: int) -> nn.Module:
    if vision_hidden != language_hidden:
        raise CheckpointError(
            f"connector_type 'identity' needs equal widths, found {vision_hidden} (vision tower) and "
            f"{language_hidden} (language model)."
        )
    return nn.Identity()


CONNECTORS: dict[str, Callable[[int, int], nn.Module]] = {"identity": _identity, "linear": nn.Linear}
