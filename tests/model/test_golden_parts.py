"""SigLIP tower, connector and Llama against tensors made by TinyLLaVA's own classes (shared fixtures).

The shared fixtures hold no SigLIP + Llama checkpoint, so each part is taken from one that has it.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tinyllava_edge.config import language_config, vision_config
from tinyllava_edge.model.checkpoint import iter_tensors
from tinyllava_edge.model.connector import build_connector
from tinyllava_edge.model.language_model import build_language_model
from tinyllava_edge.model.vision_tower import build_vision_tower

CHECKPOINTS = (
    Path(os.environ.get("TINYLLAVA_EDGE_FIXTURES", Path(__file__).parents[3] / "shared" / "fixtures"))
    / "checkpoints"
)
pytestmark = pytest.mark.skipif(
    not CHECKPOINTS.is_dir(),
    reason=f"golden checkpoints are not at {CHECKPOINTS} (too large for this repository)",
)


def _golden(name: str) -> tuple[dict[str, Any], Any, Path]:
    folder = CHECKPOINTS / name
    return json.loads((folder / "golden.json").read_text()), np.load(folder / "golden.npz"), folder / "model"


def _load(parameters: Iterable[tuple[str, nn.Parameter]], model: Path, part: str) -> None:
    wanted = dict(parameters)
    for name, tensor in iter_tensors(model, part=part, allow_pickle=True):
        with torch.no_grad():
            wanted.pop(name.removeprefix(f"{part}.")).copy_(tensor)
    assert not wanted


@pytest.mark.parametrize(
    "name",
    [
        "phi-siglip-mlp2x",
        "stablelm-siglip-linear-fp16",
        "gemma-clip-mlp3x-clspatch",
        "tinyllama-clip-mlp2x-pad",
        "qwen2-dinov2-linear-pretrain",
    ],
)
def test_tower_and_connector_equal_upstream(name: str) -> None:
    golden, arrays, model = _golden(name)
    raw = json.loads((model / "config.json").read_text())
    config = vision_config(raw, model / "config.json")
    tower = build_vision_tower(config)
    _load(tower.upstream_items(), model, "vision_tower")
    connector = build_connector(raw["connector_type"], config.hidden_size, raw["hidden_size"])
    _load(connector.named_parameters(), model, "connector")
    tower.eval()
    for index in range(len(golden["images"])):
        pixels = torch.from_numpy(arrays[f"image{index}/pixel_values"])[None]
        with torch.no_grad():
            features = tower(pixels)
            embeddings = connector.float()(features)
        np.testing.assert_allclose(features[0], arrays[f"image{index}/vision"], atol=1e-4)
        np.testing.assert_allclose(embeddings[0], arrays[f"image{index}/connector"], atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "tinyllama-clip-mlp2x-pad",
        "tinyllama-mof-mofmlp",
        "qwen2-siglip-mlp2x-bf16-sharded",
        "qwen2-dinov2-linear-pretrain",
        "gemma-clip-mlp3x-clspatch",
        "phi-siglip-mlp2x",
        "stablelm-siglip-linear-fp16",
        "openelm-siglip-mlp2x-last-fp16",
    ],
)
def test_language_model_logits_equal_upstream(name: str) -> None:
    _, arrays, model = _golden(name)
    raw = json.loads((model / "config.json").read_text())
    language_model = build_language_model(language_config(raw, model / "config.json")).eval()
    _load(language_model.named_parameters(), model, "language_model")
    for prompt in ("single", "two_turn", "text_only"):
        embeds = torch.from_numpy(arrays[f"prompt/{prompt}/inputs_embeds"])[None]
        with torch.no_grad():
            logits = language_model(inputs_embeds=embeds).logits[0]
        np.testing.assert_allclose(logits, arrays[f"prompt/{prompt}/logits"], atol=5e-4)
