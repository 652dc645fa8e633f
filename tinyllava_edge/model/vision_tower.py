"""The vision tower: transformers' encoder, and upstream's choice of layer and tokens."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tinyllava_edge.checkpoint.config import VisionConfig
from tinyllava_edge.errors import UnsupportedModelError

# DINOv2's position table is resized as transformers 4.40.1 did, which upstream is pinned to: by a factor with
# this offset. Later versions resize to a size, and the tables differ visibly.
DINOV2_GRID_OFFSET = 0.1

# Names that transformers 5 gave to parameters, and those that upstream's files have.
_RENAMED = {
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
}


class VisionTower(nn.Module):
    """Pixels -> the features that upstream selects (docs/sources/tinyllava.md#vision-towers).

    Runs all layers, as upstream does; the exported graph holds only those that the feature layer needs.
    """

    def __init__(self, config: VisionConfig, model: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[batch, 3, height, width] -> [batch, num_tokens, hidden]."""
        output = self.model(pixel_values=pixels, output_hidden_states=True)
        features = output.hidden_states[self.config.feature_layer]
        if self.config.final_norm:
            encoder: Any = getattr(self.model, "vision_model", self.model)
            features = encoder.post_layernorm(features)
        return self.select(features)

    def upstream_items(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters under the names that upstream's files have, whatever transformers calls them."""
        return [(self._upstream_name(name), parameter) for name, parameter in self.model.named_parameters()]

    def _upstream_name(self, name: str) -> str:
        return name if name.startswith("vision_model.") else f"vision_model.{name}"

    def select(self, features: torch.Tensor) -> torch.Tensor:
        """Drop token 0 where the strategy is `patch`, class token or not."""
        return features[:, 1:] if self.config.drop_first else features

    def folded(self, image_size: int) -> "VisionTower":
        """The tower for pictures of that size only, with nothing left to compute from the size."""
        return self


class Dinov2Tower(VisionTower):
    """DINOv2, whose position table fits any picture size by interpolation."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[batch, 3, height, width] -> [batch, num_tokens, hidden]."""
        embeddings: Any = self.model.embeddings
        patches = embeddings.patch_embeddings(pixels)
        rows = torch.cat([embeddings.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        rows = rows + self._positions(pixels.shape[2] // self.config.patch_size)
        states = [rows]
        for layer in self.model.encoder.layer:  # type: ignore[union-attr]
            output = layer(states[-1])
            states.append(output[0] if isinstance(output, tuple) else output)
        return self.select(states[self.config.feature_layer])

    def _upstream_name(self, name: str) -> str:
        for new, old in _RENAMED.items():
            name = name.replace(new, old)
        return name

    def folded(self, image_size: int) -> "Dinov2Tower":
        """A copy whose position table is of that picture size, so that a graph holds no interpolation."""
        tower = copy.deepcopy(self)
        positions = self._positions(image_size // self.config.patch_size).detach().clone()
        tower.model.embeddings.position_embeddings = nn.Parameter(positions)  # type: ignore[union-attr]
        return tower

    def _positions(self, grid: int) -> torch.Tensor:
        """[1, 1 + grid * grid, hidden]."""
        table: torch.Tensor = self.model.embeddings.position_embeddings  # type: ignore[union-attr,assignment]
        native = round((table.shape[1] - 1) ** 0.5)
        if grid == native:
            return table
        patches = table[:, 1:].view(1, native, native, -1).permute(0, 3, 1, 2)
        scale = (grid + DINOV2_GRID_OFFSET) / native
        resized = nn.functional.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class MofTower(VisionTower):
    """Mixture of features: CLIP and DINOv2 on the same pixels, their tokens one after the other."""

    def __init__(self, clip: VisionTower, dinov2: Dinov2Tower) -> None:
        super().__init__(clip.config, nn.ModuleDict({"clip": clip, "dinov2": dinov2}))
        self.clip, self.dinov2 = clip, dinov2

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[batch, 3, height, width] -> [batch, clip tokens then dinov2 tokens, hidden]."""
        return torch.cat([self.clip(pixels), self.dinov2(pixels)], dim=1)

    def upstream_items(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters under the names that upstream's files have."""
        halves = {"clip": self.clip, "dinov2": self.dinov2}
        return [
            (f"{name}.{key}", value) for name, half in halves.items() for key, value in half.upstream_items()
        ]

    def folded(self, image_size: int) -> VisionTower:
        """A copy whose DINOv2 position table is of that picture size."""
        return MofTower(self.clip, self.dinov2.folded(image_size))


def build_vision_tower(config: VisionConfig, second: VisionConfig | None = None) -> VisionTower:
    """Build a tower with random weights; `second` is the DINOv2 half of a mixture of features.

    Raises:
        UnsupportedModelError: the architecture is not known; the message lists those that are.
    """
    if config.architecture not in TOWERS:
        raise UnsupportedModelError(
            f"vision tower {config.architecture!r} is not supported. Supported: {', '.join(TOWERS)}."
        )
    tower = TOWERS[config.architecture](config)
    if second is None:
        return tower
    dinov2 = TOWERS[second.architecture](second)
    if not isinstance(dinov2, Dinov2Tower):
        raise UnsupportedModelError(f"a mixture of features has DINOv2 second, not {second.architecture!r}.")
    return MofTower(tower, dinov2)


def _sizes(config: VisionConfig, *more: str) -> dict[str, Any]:
    names = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    return {name: getattr(config, name) for name in (*names, "hidden_act", "layer_norm_eps", *more)}


def _siglip(config: VisionConfig) -> VisionTower:
    sizes = _sizes(config, "intermediate_size")
    return VisionTower(
        config, SiglipVisionModel(SiglipVisionConfig(**sizes, vision_use_head=config.has_head))
    )


def _clip(config: VisionConfig) -> VisionTower:
    return VisionTower(config, CLIPVisionModel(CLIPVisionConfig(**_sizes(config, "intermediate_size"))))


def _dinov2(config: VisionConfig) -> VisionTower:
    mlp_ratio = config.intermediate_size // config.hidden_size
    return Dinov2Tower(config, Dinov2Model(Dinov2Config(**_sizes(config), mlp_ratio=mlp_ratio)))


TOWERS: dict[str, Callable[[VisionConfig], VisionTower]] = {
    "siglip_vision_model": _siglip,
    "clip_vision_model": _clip,
    "dinov2": _dinov2,
}
