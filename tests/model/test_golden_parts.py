"""SigLIP tower, connector and Llama against tensors made by TinyLLaVA's own classes (shared fixtures).

The shared fixtures hold no SigLIP + Llama checkpoint, so each part is taken from one that has it.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tinyllava_edge.config import LANGUAGE_DEFAULTS, VISION_DEFAULTS, LanguageConfig, VisionConfig
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


def _load(module: nn.Module, model: Path, part: str) -> None:
    state = {}
    for name, tensor in iter_tensors(model, part=part):
        key = name.removeprefix(f"{part}.")
        if key not in module.state_dict():  # transformers 5 dropped this prefix
            key = key.removeprefix("vision_model.")
        state[key] = tensor
    module.load_state_dict(state, strict=True)


@pytest.mark.parametrize("name", ["phi-siglip-mlp2x", "stablelm-siglip-linear-fp16"])
def test_siglip_tower_and_connector_equal_upstream(name: str) -> None:
    golden, arrays, model = _golden(name)
    raw = json.loads((model / "config.json").read_text())
    known = VISION_DEFAULTS["siglip_vision_model"]
    values = {**known, **{k: v for k, v in raw["vision_config"].items() if k in known}}
    tower = build_vision_tower(VisionConfig(architecture="siglip_vision_model", **values))
    _load(tower.model, model, "vision_tower")
    connector = build_connector(raw["connector_type"], values["hidden_size"], raw["hidden_size"])
    _load(connector, model, "connector")
    tower.eval()
    for index in range(len(golden["images"])):
        pixels = torch.from_numpy(arrays[f"image{index}/pixel_values"])[None]
        with torch.no_grad():
            features = tower(pixels)
            embeddings = connector.float()(features)
        np.testing.assert_allclose(features[0], arrays[f"image{index}/vision"], atol=1e-4)
        np.testing.assert_allclose(embeddings[0], arrays[f"image{index}/connector"], atol=1e-4)


@pytest.mark.parametrize("name", ["tinyllama-clip-mlp2x-pad", "tinyllama-mof-mofmlp"])
def test_llama_logits_equal_upstream(name: str) -> None:
    _, arrays, model = _golden(name)
    raw = json.loads((model / "config.json").read_text())["text_config"]
    known = LANGUAGE_DEFAULTS["llama"]
    values = {**known, **{k: v for k, v in raw.items() if k in known}}
    values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    language_model = build_language_model(LanguageConfig(architecture="llama", **values)).eval()
    _load(language_model, model, "language_model")
    for prompt in ("single", "two_turn", "text_only"):
        embeds = torch.from_numpy(arrays[f"prompt/{prompt}/inputs_embeds"])[None]
        with torch.no_grad():
            logits = language_model(inputs_embeds=embeds).logits[0]
        np.testing.assert_allclose(logits, arrays[f"prompt/{prompt}/logits"], atol=5e-4)
