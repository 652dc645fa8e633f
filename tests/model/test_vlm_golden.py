"""The torch model against tensors made by TinyLLaVA's own classes (shared fixtures), stage by stage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden import CHECKPOINT_NAMES, golden_checkpoint, shared_fixtures
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.vlm import load_model


def _golden(name: str) -> tuple[dict[str, Any], Any, Path]:
    folder = golden_checkpoint(name)
    with np.load(folder / "golden.npz") as arrays:
        return json.loads((folder / "golden.json").read_text()), dict(arrays), folder / "model"


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_a_whole_checkpoint_equals_upstream(name: str) -> None:
    golden, arrays, folder = _golden(name)
    model = load_model(Checkpoint(folder, sources=shared_fixtures() / "sources", allow_pickle=True))
    for index in range(len(golden["images"])):
        pixels = torch.from_numpy(arrays[f"image{index}/pixel_values"])[None]
        with torch.no_grad():
            features = model.vision_tower(pixels)
            embeddings = model.connector(features)
        if f"image{index}/vision" in arrays:
            np.testing.assert_allclose(features[0], arrays[f"image{index}/vision"], atol=1e-4)
        else:
            halves = [arrays[f"image{index}/vision_{half}"] for half in ("clip", "dinov2")]
            np.testing.assert_allclose(features[0], np.concatenate(halves), atol=1e-4)
        np.testing.assert_allclose(embeddings[0], arrays[f"image{index}/connector"], atol=1e-4)
    for prompt, facts in golden["prompts"].items():
        ids = arrays[f"prompt/{prompt}/input_ids"].ravel().tolist()
        stack = [arrays[f"image{index}/pixel_values"] for index in facts["images"]]
        logits = model.logits(ids, torch.from_numpy(np.stack(stack)) if stack else None)
        if f"prompt/{prompt}/logits" in arrays:
            np.testing.assert_allclose(logits, arrays[f"prompt/{prompt}/logits"], atol=5e-4)
        else:
            expected = arrays.get(f"prompt/{prompt}/tail_logits", arrays.get(f"prompt/{prompt}/last_logits"))
            expected = expected.reshape(-1, logits.shape[1])
            np.testing.assert_allclose(logits[-len(expected) :], expected, atol=5e-4)
