"""What a typed graph computes where every value is really rounded to its type, and how large values get.

ONNX Runtime's CPU provider computes most float16 nodes in float32 (all but convolutions on ARM with float16
vectors, all on x86) and has no bfloat16; torch's half kernels compute GELU and attention in float32 inside.
Both hide an overflow that a GPU would have. So the typed graph is evaluated in float32 with a rounding behind
every operation, and float16 sums in products (`float16_sums.py`): float32 islands and casts are what they are
in the file. An accelerator that fuses operations rounds less often, so this is the pessimistic figure.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from tinyllava_edge.manifest import EMBEDDINGS, PIXELS
from tinyllava_edge.precisions import FLOAT16_MAX

from .float16_sums import in_float16_sums
from .onnx_file import element_types, open_session, opened_graph, replace_nodes

Floats = npt.NDArray[np.float32]
_as_it_is = partial(open_session, optimize=False)
LOW_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# Operators that can carry an infinity on unharmed, towards ...
_CARRY = ("Add", "Div", "Mul", "Pow")
# ... these, which turn it into their exact limit: the inner values of GELU.
_SATURATE = ("Erf", "Tanh")
# One number of a value: operators behind it, the first with the value as each of its inputs.
LARGEST: tuple[str, ...] = ("Abs", "ReduceMax")
LOWEST: tuple[str, ...] = ("ReduceMin",)
HIGHEST: tuple[str, ...] = ("ReduceMax",)
MEAN_SQUARE: tuple[str, ...] = ("Mul", "ReduceMean")


@dataclass(frozen=True, kw_only=True)
class ValueRange:
    """The largest magnitude a value of the graph reached."""

    value: str
    name: str  # of the node that makes it: module path / value
    largest: float
    harmless: bool  # an infinity here would not reach the output

    @property
    def margin(self) -> float:
        """How many times larger it could be before float16 overflows."""
        return FLOAT16_MAX / self.largest if self.largest else float("inf")


def evaluate_rounded(proto: onnx.ModelProto, pixels: Floats, output: str = EMBEDDINGS) -> Floats:
    """Embeddings (or an inner value) of a graph, every weight and value rounded to its own type."""
    change = partial(_emulate, output=output, float16_sums=True)
    with opened_graph(proto, change, open_file=_as_it_is) as session:
        return np.concatenate([session.run([output], {PIXELS: picture[None]})[0] for picture in pixels])


def measure_ranges(proto: onnx.ModelProto, pixels: Floats) -> list[ValueRange]:
    """The largest magnitude of values in the graph's order, before they are rounded.

    Of a float32 graph: every value. Of a float16 or bfloat16 one: those that are stored in that type.
    """
    types = element_types(proto.graph)
    is_typed = any(kind in LOW_TYPES for kind in types.values())
    kinds = LOW_TYPES if is_typed else (TensorProto.FLOAT,)
    nodes = [node for node in proto.graph.node if types.get(node.output[0]) in kinds]
    names = [node.output[0] for node in nodes]
    suffix = "_exact" if is_typed else ""
    largest = measure_values(proto, pixels, [f"{name}{suffix}" for name in names], (LARGEST,))
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in proto.graph.node:
        for name in node.input:
            consumers[name].append(node)
    return [
        ValueRange(value=name, name=node.name, largest=float(value), harmless=_saturates(name, consumers))
        for node, name, value in zip(nodes, names, largest[:, :, 0].max(axis=0), strict=True)
    ]


def measure_values(
    proto: onnx.ModelProto, pixels: Floats, names: Sequence[str], reductions: Sequence[tuple[str, ...]]
) -> Floats:
    """[pictures, names, reductions]: numbers such as `LARGEST` of values of a graph."""

    def change(graph: onnx.GraphProto) -> None:
        _emulate(graph)
        _output_reduced(graph, names, reductions)

    with opened_graph(proto, change, open_file=_as_it_is) as session:
        rows = [session.run(None, {PIXELS: picture[None]}) for picture in pixels]
    return np.array(rows, dtype=np.float32).reshape(len(pixels), len(names), len(reductions))


def _emulate(graph: onnx.GraphProto, output: str = EMBEDDINGS, *, float16_sums: bool = False) -> None:
    """Turn a typed graph into a float32 one that rounds; value names stay, `<name>_exact` is unrounded."""
    types, dims = element_types(graph), _dims(graph)
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.data_type in LOW_TYPES}
    restored: dict[str, str] = {}  # a low weight -> its float32 value
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for name in node.input:
            if name in weights and name not in restored:  # right before its first use: weights are large
                restored[name] = f"{name}_float32"
                nodes.append(_cast(name, restored[name], TensorProto.FLOAT))
        sizes = {restored.get(name, name): dims[name] for name in node.input if name in dims}
        node.input[:] = [restored.get(name, name) for name in node.input]
        target, kind = node.output[0], types.get(node.output[0])
        if node.op_type == "Cast":
            kind = next(attribute.i for attribute in node.attribute if attribute.name == "to")
            node = helper.make_node("Identity", node.input, [target])
        if kind in LOW_TYPES:
            node.output[0] = f"{target}_exact"
        summed = float16_sums and kind == TensorProto.FLOAT16
        nodes += in_float16_sums(node, sizes) if summed else [node]
        if kind in LOW_TYPES:
            nodes.append(_cast(f"{target}_exact", f"{target}_low", kind))
            nodes.append(_cast(f"{target}_low", target, TensorProto.FLOAT))
    replace_nodes(graph, nodes)
    del graph.value_info[:], graph.output[:]
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))


def _dims(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Sizes of weights, inputs and listed inner values; 0 where one is open, as the batch is."""
    found = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info):
        found[value.name] = [size.dim_value for size in value.type.tensor_type.shape.dim]
    return found


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=kind)


def _output_reduced(
    graph: onnx.GraphProto, names: Iterable[str], reductions: Sequence[tuple[str, ...]]
) -> None:
    """Make numbers of values the outputs, in the place of the embeddings.

    Each is computed right behind its value: at the end, every value would have to be kept until then.
    """
    wanted = set(names)
    nodes: list[onnx.NodeProto] = []
    outputs: dict[str, list[str]] = {}
    for node in graph.node:
        nodes.append(node)
        for name in filter(wanted.__contains__, node.output):
            outputs[name] = [f"{name}_{'_'.join(operators)}" for operators in reductions]
            for operators, target in zip(reductions, outputs[name], strict=True):
                nodes += _reduction(name, target, operators)
    replace_nodes(graph, nodes)
    del graph.output[:]
    for name in names:
        graph.output.extend(
            helper.make_tensor_value_info(target, TensorProto.FLOAT, []) for target in outputs[name]
        )


def _reduction(value: str, target: str, operators: tuple[str, ...]) -> list[onnx.NodeProto]:
    nodes = []
    for operator in operators[:-1]:
        inputs = [value, value] if operator == "Mul" else [value]
        value = f"{target}_{operator}"
        nodes.append(helper.make_node(operator, inputs, [value]))
    return [*nodes, helper.make_node(operators[-1], [value], [target], keepdims=0)]


def _saturates(name: str, consumers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether every way on from a value ends in an operator with a limit."""
    return bool(consumers[name]) and all(
        node.op_type in _SATURATE or (node.op_type in _CARRY and _saturates(node.output[0], consumers))
        for node in consumers[name]
    )
