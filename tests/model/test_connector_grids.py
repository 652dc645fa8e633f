"""Connectors that make squares of patches one token: torch's own pooling is the oracle."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import nn

from tests.tiny import tiny_config
from tinyllava_edge.checkpoint.config import ConnectorConfig
from tinyllava_edge.checkpoint.read_config import model_config
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.connector import build_connector


def _mlp2x(state: dict[str, torch.Tensor]) -> nn.Module:
    """`mlp2x_gelu` with the weights of another."""
    mlp = build_connector(ConnectorConfig(type="mlp2x_gelu"), 24, 40)
    mlp.load_state_dict(state)
    return mlp


@pytest.mark.parametrize(("side", "factor"), [(24, 2), (27, 3), (27, 9), (16, 4), (6, 6), (5, 1)])
def test_avg_pool_is_torchs_avg_pool2d_and_then_mlp2x_gelu(side: int, factor: int) -> None:
    torch.manual_seed(side)
    connector = build_connector(ConnectorConfig(type="avg_pool", factor=factor), 24, 40)
    features = torch.randn(2, side * side, 24)
    grid = features.transpose(1, 2).reshape(2, 24, side, side)
    pooled = F.avg_pool2d(grid, kernel_size=factor).flatten(2).transpose(1, 2)
    torch.testing.assert_close(connector(features), _mlp2x(connector.state_dict())(pooled))
    assert connector(features).shape == (2, (side // factor) ** 2, 40)


def test_pixel_shuffle_is_torchs_pixel_unshuffle_with_channels_last() -> None:
    torch.manual_seed(0)
    connector: Any = build_connector(ConnectorConfig(type="pixel_shuffle", factor=2), 24, 40)
    features = torch.randn(2, 36, 24)
    # [batch, hidden * 4, 3, 3] with a channel's four values together -> place by place, all channels of each
    squares = F.pixel_unshuffle(features.transpose(1, 2).reshape(2, 24, 6, 6), 2)
    rows = squares.reshape(2, 24, 4, 9).permute(0, 3, 2, 1).flatten(2)
    torch.testing.assert_close(connector(features), F.linear(rows, connector.proj.weight))


def _config(**sizes: Any) -> Any:
    return model_config(tiny_config(**sizes), Path("some"))


@pytest.mark.parametrize("connector", ["avg_pool", "pixel_shuffle"])
@pytest.mark.parametrize(
    ("tower", "select"),
    [("siglip_vision_model", "cls_patch"), ("clip_vision_model", "patch"), ("dinov2", "patch")],
)
def test_every_tower_has_a_grid(connector: str, tower: str, select: str) -> None:
    config = _config(tower=tower, select_strategy=select, connector=connector)
    assert config.connector.factor == 2, "where config.json does not say it"
    config.check_grid(56, "config.json")
    assert config.num_picture_tokens(56) == 4


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            {"select_strategy": "patch"},
            "of 4 x 4 patches the tower gives 15 tokens. Of a siglip_vision_model "
            "vision_feature_select_strategy (--feature-select) cls_patch is the whole grid",
        ),
        ({"tower": "clip_vision_model", "select_strategy": "cls_patch"}, "(--feature-select) patch is"),
        (
            {"image_size": 378, "factor": 2},
            "connector_factor (--connector-factor) 2 does not divide the 27 x 27 patches of 378 px. "
            "Factors that do: 3, 9, 27",
        ),
        ({"image_size": 14, "factor": 2}, "Factors that do: none above 1"),
        ({"factor": 0}, "connector_factor = 0 is not a possible whole number"),
        ({"factor": "2"}, "connector_factor = '2' is not a possible whole number"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_with_what_fits(sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        _config(**{"connector": "avg_pool", "select_strategy": "cls_patch", **sizes})


def test_dinov2s_grid_is_that_of_the_pictures_and_not_of_its_position_table() -> None:
    config = _config(tower="dinov2", connector="avg_pool", image_size=518)  # a table of 37 x 37
    config.check_grid(224, "config.json")
    assert config.num_picture_tokens(224) == 64
    with pytest.raises(CheckpointError, match="37 x 37 patches of 518 px"):
        config.check_grid(518, "config.json")


def test_a_connector_without_a_grid_is_left_alone() -> None:
    _config(connector="mlp2x_gelu").check_grid(14, "config.json")
