"""The real vision tower of `tools/dinov2.py` as a TinyLLaVA checkpoint of its own.

The checkpoint's language model is tiny and random, and its connector is the identity, so that the graph's
embeddings are the tower's own features.
"""

import json
import shutil
from pathlib import Path

import onnx
import torch
from safetensors.torch import save_file

from tests.tiny import TOKENIZER_FOLDER, tiny_config
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.vlm import build_model, upstream_state_dict
from tools.dinov2 import PROCESSOR, VISION_CONFIG, WIDTH, lifted_tensors

_PREFIX = "vision_tower._vision_tower."


def write_checkpoint(onnx_file: Path, directory: Path, *, image_size: int = 224) -> Path:
    """Write the tower, an identity connector and a tiny random language model as one checkpoint."""
    directory.mkdir(parents=True)
    config = tiny_config(hidden=WIDTH, heads=6, kv_heads=6, connector="identity", feature_layer=-2)
    config["vision_config"] = VISION_CONFIG
    config["vision_hidden_size"] = WIDTH
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    processor = {**PROCESSOR, "size": {"height": image_size, "width": image_size}}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    for path in TOKENIZER_FOLDER.iterdir():
        shutil.copy(path, directory / path.name)
    torch.manual_seed(0)
    state = upstream_state_dict(build_model(Checkpoint(directory).config))
    lifted = {f"{_PREFIX}{name}": value for name, value in lifted_tensors(onnx.load(onnx_file))}
    missing = {name for name in state if name.startswith(_PREFIX)} ^ lifted.keys()
    assert missing <= {f"{_PREFIX}embeddings.mask_token"}, missing
    state |= lifted
    save_file(
        {k: v.contiguous() for k, v in state.items()}, directory / "model.safetensors", {"format": "pt"}
    )
    return directory
