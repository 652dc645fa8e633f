"""Checkpoints of transformers' own LlavaForConditionalGeneration, which is the oracle here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from tinyllava_edge.checkpoint.layouts import LLAVA
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import UnsupportedModelError
from tinyllava_edge.model.vlm import load_model

_TOWER: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
_PICTURE = 451  # transformers' placeholder, repeated for each token of the picture


def _saved(folder: Path, tower: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=452,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=None,
    )
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=_PICTURE, **changes)
    model: Any = LlavaForConditionalGeneration(config)
    model.eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("tower", "changes", "tokens"),
    [
        (CLIPVisionConfig(**_TOWER), {}, 16),
        (SiglipVisionConfig(**_TOWER), {}, 15),
        (SiglipVisionConfig(**_TOWER, vision_use_head=False), {}, 15),
        (
            CLIPVisionConfig(**_TOWER),
            {"vision_feature_select_strategy": "full", "vision_feature_layer": -1},
            17,
        ),
    ],
)
def test_logits_equal_transformers(tmp_path: Path, tower: Any, changes: dict[str, Any], tokens: int) -> None:
    theirs = _saved(tmp_path, tower, **changes)
    ours = load_model(Checkpoint(tmp_path))
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[1, 20, 21, *[_PICTURE] * tokens, 30, 31]])
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pixels).logits[0]
    found = ours.logits([1, 20, 21, -200, 30, 31], pixels)
    assert Checkpoint(tmp_path).layout == LLAVA
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_another_projector_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path, CLIPVisionConfig(**_TOWER), projector_hidden_act="relu")
    with pytest.raises(UnsupportedModelError, match="relu"):
        load_model(Checkpoint(tmp_path))


@pytest.mark.parametrize("strategy", [["default"], {}, None, 1])
def test_a_strategy_that_is_no_name_is_refused(tmp_path: Path, strategy: object) -> None:
    config = {"model_type": "llava", "text_config": {}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vision_feature_select_strategy": strategy}))
    with pytest.raises(UnsupportedModelError, match="vision_feature_select_strategy"):
        assert Checkpoint(tmp_path).config
