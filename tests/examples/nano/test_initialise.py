"""A tower's first weights, and the scale of its last features."""

import copy
from pathlib import Path

import pytest
import torch

from examples.nano.distill import run_used_layers, scale_stream
from examples.nano.initialise import initialise_tower
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.vision_tower import VisionTower
from tinyllava_edge.model.vlm import load_model


@pytest.fixture
def tower(tmp_path: Path) -> VisionTower:
    return load_model(Checkpoint(write_tiny_checkpoint(tmp_path / "tiny"))).vision_tower


def _pictures(count: int) -> torch.Tensor:
    """Smooth pictures: neighbouring pixels are alike."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 9, 9, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=56, mode="bilinear")


def test_patches_are_decorrelated_and_centred(tower: VisionTower) -> None:
    pixels = _pictures(256)
    initialise_tower(tower, pixels, torch.Generator().manual_seed(1))
    embedding = next(m for m in tower.model.modules() if isinstance(m, torch.nn.Conv2d))
    with torch.no_grad():
        values = embedding(pixels).flatten(2).transpose(1, 2).flatten(0, 1)
    assert values.mean(0).abs().max() < 0.1 * values.std()
    assert 0.1 < values.std() < 0.6


def test_scaling_the_stream_scales_the_features_and_nothing_else(tower: VisionTower) -> None:
    pixels = _pictures(4)
    with torch.no_grad():
        before = run_used_layers(tower, pixels)
        scaled = copy.deepcopy(tower)
        scale_stream(scaled, torch.tensor(0.25))
        torch.testing.assert_close(run_used_layers(scaled, pixels), before / 4, rtol=1e-3, atol=1e-4)
