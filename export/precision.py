"""Float16 of a vision graph, judged by arithmetic that really rounds.

ONNX Runtime's CPU provider computes float16 nodes in float32, and torch's half kernels compute GELU and
attention in float32 inside: both hide an overflow that a GPU would have. So the graph itself is evaluated
with every value rounded to float16, and the largest magnitude of every value is measured in float32.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tinyllava_edge.errors import ExportError

from .vision_onnx import EMBEDDINGS, PIXELS, write_vision_graph

FLOAT16_MAX = 65504.0
# Operators that can carry an infinity on unharmed, towards ...
_CARRY = ("Add", "Div", "Mul", "Pow")
# ... these, which turn it into their exact limit: the inner values of GELU.
_SATURATE = ("Erf", "Tanh")


@dataclass(frozen=True, kw_only=True)
class ValueRange:
    """The largest magnitude a value of the graph reached."""

    name: str  # of the node that makes it: module path / value
    largest: float
    harmless: bool  # an infinity here would not reach the output

    @property
    def margin(self) -> float:
        """How many times larger it could be before float16 overflows."""
        return FLOAT16_MAX / self.largest if self.largest else float("inf")


def to_float16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with weights and operations in float16; input and output stay float32.

    Raises:
        ExportError: a weight is too large for float16, or an operator has a fixed float32 inside.
    """
    half = _without_weights(proto)
    graph = half.graph
    for tensor in proto.graph.initializer:
        is_float = tensor.data_type == TensorProto.FLOAT
        graph.initializer.append(_float16_tensor(tensor) if is_float else tensor)
    for node in graph.node:
        if node.op_type in ("Cast", "Constant", "ConstantOfShape"):
            raise ExportError(f"fp16: node {node.name} is a {node.op_type}, which fixes a type.")
        _rename(node.input, PIXELS, f"{PIXELS}_fp16")
        _rename(node.input, EMBEDDINGS, f"{EMBEDDINGS}_fp16")
        _rename(node.output, EMBEDDINGS, f"{EMBEDDINGS}_fp16")
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    first = helper.make_node("Cast", [PIXELS], [f"{PIXELS}_fp16"], "fp16/in", to=TensorProto.FLOAT16)
    last = helper.make_node("Cast", [f"{EMBEDDINGS}_fp16"], [EMBEDDINGS], "fp16/out", to=TensorProto.FLOAT)
    _replace_nodes(graph, [first, *graph.node, last])
    return half


def evaluate_rounded(proto: onnx.ModelProto, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Embeddings of a float32 graph in which every weight and every value is rounded to float16."""
    with opened_graph(proto, _round_everything, optimize=False) as session:
        rows = [session.run([EMBEDDINGS], {PIXELS: picture[None]})[0] for picture in pixels]
    return np.concatenate(rows)


def measure_ranges(proto: onnx.ModelProto, pixels: npt.NDArray[np.float32]) -> list[ValueRange]:
    """The largest magnitude of every value of a float32 graph, in the graph's order."""
    with opened_graph(proto, _output_magnitudes) as session:
        largest = np.max([session.run(None, {PIXELS: picture[None]}) for picture in pixels], axis=0)
    floats = _float_values(proto.graph)
    nodes = [node for node in proto.graph.node if node.output[0] in floats]
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in proto.graph.node:
        for name in node.input:
            consumers[name].append(node)
    return [
        ValueRange(name=node.name, largest=float(value), harmless=_saturates(node.output[0], consumers))
        for node, value in zip(nodes, largest, strict=True)
    ]


@contextmanager
def opened_graph(
    proto: onnx.ModelProto,
    change: Callable[[onnx.GraphProto], None] | None = None,
    *,
    optimize: bool = True,
) -> Iterator[onnxruntime.InferenceSession]:
    """Open a graph on ONNX Runtime's CPU provider, through a temporary file.

    Args:
        proto: left as it is.
        change: changes nodes and outputs of what is opened; large weights stay in their own file meanwhile.
        optimize: let ONNX Runtime rewrite the graph.
    """
    with TemporaryDirectory(prefix="tinyllava-edge-") as folder:
        path = Path(folder) / "graph.onnx"
        write_vision_graph(path, proto)
        if change is not None:
            without_weights = onnx.load(path, load_external_data=False)
            change(without_weights.graph)
            path.write_bytes(without_weights.SerializeToString())
        yield open_session(path, optimize=optimize)


def open_session(path: Path, *, optimize: bool = True) -> onnxruntime.InferenceSession:
    """Open a graph's file on ONNX Runtime's CPU provider."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # In the order of the file where there is a choice, so that a value is not kept longer than it must be.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.disable_prepacking", "1")  # a second copy of every weight
    if not optimize:  # the optimizer would take a cast to float16 and back for nothing
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with no initializers."""
    copied = onnx.ModelProto(ir_version=proto.ir_version, producer_name=proto.producer_name)
    copied.producer_version = proto.producer_version
    copied.opset_import.extend(proto.opset_import)
    copied.graph.name = proto.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(copied.graph, field).extend(getattr(proto.graph, field))
    return copied


def _float16_tensor(tensor: TensorProto) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= FLOAT16_MAX:
        raise ExportError(
            f"fp16: weight {tensor.name!r} has values up to {largest:.6g}, float16 ends at {FLOAT16_MAX:g}. "
            "Export --vision fp32."
        )
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _round_everything(graph: onnx.GraphProto) -> None:
    """Send the input, every weight and every value through float16."""
    floats = _float_values(graph)
    weights = [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    waiting = {name: f"{name}_rounded" for name in (PIXELS, *weights)}
    rounded: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        for name in node.input:
            if name in waiting:  # right before its first use: weights are large
                rounded[name] = waiting.pop(name)
                nodes += _rounding(name, rounded[name])
        node.input[:] = [rounded.get(name, name) for name in node.input]
        nodes.append(node)
        name = node.output[0]
        if name in floats:
            node.output[0] = f"{name}_exact"
            nodes += _rounding(f"{name}_exact", name)
    _replace_nodes(graph, nodes)


def _rounding(source: str, target: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [source], [f"{target}_fp16"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{target}_fp16"], [target], to=TensorProto.FLOAT),
    ]


def _output_magnitudes(graph: onnx.GraphProto) -> None:
    """Make the largest magnitude of every value an output, in the place of the embeddings.

    Each is computed right behind its value: at the end, every value would have to be kept until then.
    """
    floats = _float_values(graph)
    nodes = []
    del graph.output[:]
    for node in graph.node:
        nodes.append(node)
        name = node.output[0]
        if name in floats:
            nodes.append(helper.make_node("Abs", [name], [f"{name}_abs"]))
            nodes.append(helper.make_node("ReduceMax", [f"{name}_abs"], [f"{name}_max"], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(f"{name}_max", TensorProto.FLOAT, []))
    _replace_nodes(graph, nodes)


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new


def _float_values(graph: onnx.GraphProto) -> set[str]:
    return {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }


def _saturates(name: str, consumers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether every way on from a value ends in an operator with a limit."""
    return bool(consumers[name]) and all(
        node.op_type in _SATURATE or (node.op_type in _CARRY and _saturates(node.output[0], consumers))
        for node in consumers[name]
    )
