"""Several budgets of visual tokens in one connector: the config, the model and what it learns from."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name

from tests.tiny import tiny_config
from tinyllava_edge.checkpoint.config import ConnectorConfig
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.read_config import model_config
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.connector import build_connector
from tinyllava_edge.model.vlm import build_model


def _raw(**sizes: Any) -> dict[str, Any]:
    return tiny_config(connector="avg_pool", select_strategy="cls_patch", **sizes)


@pytest.mark.parametrize(
    ("side", "budgets"), [(27, (729, 81, 9)), (24, (576, 144, 36, 9)), (6, (36, 9, 4, 1))]
)
def test_each_budget_is_torchs_average_of_the_grid(side: int, budgets: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    connector: Any = build_connector(ConnectorConfig(type="avg_pool", budgets=budgets), 8, 16)
    features = torch.randn(2, side * side, 8)
    grid = features.transpose(1, 2).reshape(2, 8, side, side)
    for tokens in budgets:
        pooled = F.avg_pool2d(grid, side // round(tokens**0.5)).flatten(2).transpose(1, 2)
        expected = torch.nn.Sequential(*connector)(pooled)
        torch.testing.assert_close(connector(features, tokens), expected)
    torch.testing.assert_close(connector(features), connector(features, budgets[0]))


def test_the_finer_ones_average_to_the_coarser_before_the_mlp() -> None:
    """Nested, as in M3: pooling 27 -> 9 -> 3 step by step is pooling 27 -> 3 at once."""
    grid = torch.randn(1, 8, 27, 27)
    torch.testing.assert_close(F.avg_pool2d(F.avg_pool2d(grid, 3), 3), F.avg_pool2d(grid, 9))


def test_a_model_at_a_budget_shares_its_weights_and_leaves_the_other_alone() -> None:
    model = build_model(model_config(_raw() | {"token_budgets": [1, 16, 4]}, Path("some")))
    pixels = torch.rand(1, 3, 56, 56)
    shapes = {tokens: model.at_tokens(tokens).encode(pixels).shape[1] for tokens in (1, 4, 16)}
    assert shapes == {1: 1, 4: 4, 16: 16}
    assert model.encode(pixels).shape[1] == model.config.num_picture_tokens(56) == 16
    assert model.at_tokens(4).config.num_picture_tokens(56) == 4
    assert model.at_tokens(4).connector[0].weight is model.connector[0].weight  # type: ignore[index]
    with pytest.raises(CheckpointError, match=r"no budget of 5 visual tokens. There are: 16, 4, 1"):
        model.at_tokens(5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token_budgets": [16, 8]}, "squares of 4 x 4 patches never make 8 tokens, but 16, 4, 1."),
        ({"token_budgets": [9]}, "never make 9 tokens, but 16, 4, 1."),
        ({"token_budgets": [16, 16]}, "token_budgets = [16, 16] is no list of different numbers"),
        ({"token_budgets": []}, "token_budgets = [] is no list"),
        ({"token_budgets": [0]}, "token_budgets = [0] is no list"),
        ({"token_budgets": [True]}, "token_budgets = [True] is no list"),
        ({"token_budgets": "16"}, "token_budgets = '16' is no list"),
        ({"token_budgets": [16], "connector_type": "mlp2x_gelu"}, "is of connector_type avg_pool, not"),
        ({"token_budgets": [16], "vision_feature_select_strategy": "patch"}, "gives 15 tokens"),
    ],
)
def test_budgets_that_cannot_be_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        model_config(_raw() | changes, Path("some/config.json"))


def test_a_checkpoint_with_the_same_mlp_is_read_as_one_with_budgets(tmp_path: Path) -> None:
    """`train --from`: upstream's own connector, its MLP behind a pool, and the patch that upstream drops."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    assert Checkpoint(tmp_path).config.num_picture_tokens(56) == 15
    config = Checkpoint(tmp_path, budgets=(16, 4)).config
    assert (config.connector.type, config.connector.budgets) == ("avg_pool", (16, 4))
    assert config.num_picture_tokens(56) == 16
    assert Checkpoint(tmp_path, budgets=(16, 4), tokens=4).config.num_picture_tokens(56) == 4
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(connector="linear")))
    with pytest.raises(CheckpointError, match=r"needs a connector mlp2x_gelu or avg_pool, and .* 'linear'"):
        assert Checkpoint(tmp_path, budgets=(16, 4)).config
