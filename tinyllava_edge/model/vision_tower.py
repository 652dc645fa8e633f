"""The vision tower: transformers' encoder, and upstream's choice of layer and tokens."""

from typing import Any

import torch
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from tinyllava_edge.config import VisionConfig
from tinyllava_edge.errors import UnsupportedModelError


class VisionTower(nn.Module):
    """Pixels -> the features that upstream selects (spec/tinyllava.md section 1.2).

    Runs all layers, as upstream does; the exported graph holds only those that the feature layer needs.
    """

    def __init__(self, config: VisionConfig, model: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[batch, 3, height, width] -> [batch, num_tokens, hidden]."""
        output = self.model(pixel_values=pixels, output_hidden_states=True)
        return self.select(output.hidden_states[self.config.feature_layer])

    def select(self, features: torch.Tensor) -> torch.Tensor:
        """Drop token 0 where the strategy is `patch`, class token or not."""
        return features[:, 1:] if self.config.drop_first else features


def build_vision_tower(config: VisionConfig) -> VisionTower:
    """Build a tower with random weights.

    Raises:
        UnsupportedModelError: the architecture is not known; the message lists those that are.
    """
    if config.architecture not in TOWERS:
        raise UnsupportedModelError(
            f"vision tower {config.architecture!r} is not supported. Supported: {', '.join(TOWERS)}."
        )
    return VisionTower(config, TOWERS[config.architecture](config))


def _siglip(config: VisionConfig) -> nn.Module:
    values: dict[str, Any] = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
    }
    return SiglipVisionModel(SiglipVisionConfig(**values))


TOWERS = {"siglip_vision_model": _siglip}
