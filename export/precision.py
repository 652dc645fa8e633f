"""A float32 vision graph in float16 or bfloat16, with float32 islands where float16 would overflow.

Types are in the graph itself, because TensorRT 11 has no other way to be told, and TensorRT 10 honours them
in a strongly typed network. bfloat16 has float32's range and needs no island.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinyllava_edge.errors import ExportError
from tinyllava_edge.manifest import EMBEDDINGS, PIXELS
from tinyllava_edge.precisions import FLOAT16_LIMIT, FLOAT16_MAX

from .onnx_file import element_types, replace_nodes, without_weights
from .rounding import ValueRange

_SUFFIX: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}
_UNTYPED = ("Shape", "Size")  # their result does not depend on their input's type


@dataclass(frozen=True, kw_only=True)
class Island:
    """Operations that stay in float32 between casts, because a value between them needs its range.

    Attributes:
        nodes: names, in the graph's order.
        largest: the largest magnitude that asked for it: of a value, or of a weight.
        at: name of the node that makes the value or has the weight.
        in_attention: whether it is part of a MatMul-Softmax-MatMul, which TensorRT then cannot fuse.
    """

    nodes: tuple[str, ...]
    largest: float
    at: str
    in_attention: bool


def find_islands(proto: onnx.ModelProto, ranges: Sequence[ValueRange]) -> tuple[Island, ...]:
    """Where float16 has not the range: a value over half of it, makers and users; a weight over all of it.

    Args:
        proto: the graph.
        ranges: of its float32 form, measured on real pictures.
    """
    large = {r.value: r.largest for r in ranges if not r.harmless and not r.largest <= FLOAT16_LIMIT}
    weights = {
        tensor.name: magnitude
        for tensor in proto.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and (magnitude := _largest(tensor)) > FLOAT16_MAX
    }
    # Nodes that touch the same large value belong together.
    groups: list[list[onnx.NodeProto]] = []
    for node in proto.graph.node:
        touched = {name for name in (*node.input, *node.output) if name in large or name in weights}
        if not touched or node.op_type in _UNTYPED:
            continue
        joined = [g for g in groups if any(touched & {*n.input, *n.output} & large.keys() for n in g)]
        groups = [group for group in groups if group not in joined]
        groups.append([*(member for group in joined for member in group), node])
    attention = attention_nodes(proto.graph)
    order = {node.name: index for index, node in enumerate(proto.graph.node)}
    islands = []
    for group in groups:
        found = [
            (value, node.name)
            for node in group
            for name in (*node.output, *node.input)
            if (value := {**weights, **large}.get(name)) is not None
        ]
        largest, at = max(found, key=lambda one: np.nan_to_num(one[0], nan=np.inf))
        names = tuple(sorted((node.name for node in group), key=order.__getitem__))
        in_attention = any(name in attention for name in names)
        islands.append(Island(nodes=names, largest=largest, at=at, in_attention=in_attention))
    return tuple(islands)


def attention_nodes(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes of every MatMul-Softmax-MatMul."""
    makers = {name: node for node in graph.node for name in node.output}
    found = set()
    for node in graph.node:
        before = makers.get(node.input[0]) if node.input else None
        if node.op_type == "Softmax" and before is not None:
            found |= {node.name, before.name}
        elif node.op_type == "MatMul" and before is not None and before.op_type == "Softmax":
            found.add(node.name)
    return found


def to_float16(proto: onnx.ModelProto, islands: Iterable[Island] = ()) -> onnx.ModelProto:
    """The same graph in float16 but for the islands; input and output stay float32.

    Raises:
        ExportError: a weight outside of an island is too large, or an operator has a fixed type inside.
    """
    kept = {name: TensorProto.FLOAT for island in islands for name in island.nodes}
    return _typed(proto, TensorProto.FLOAT16, kept)


def to_bfloat16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in bfloat16; input and output stay float32.

    The convolution that cuts the picture into patches is float16: opset 18 has none in bfloat16 (torch's own
    export of a bfloat16 model writes one, which onnx's checker refuses), and pixels are small.
    """
    kept = {node.name: TensorProto.FLOAT16 for node in proto.graph.node if node.op_type == "Conv"}
    return _typed(proto, TensorProto.BFLOAT16, kept)


def _typed(proto: onnx.ModelProto, low: int, kept: Mapping[str, int]) -> onnx.ModelProto:
    """The graph in the type `low`; `kept` has the types of nodes that are to have another."""
    typed = without_weights(proto)
    retyping = _Retyping(typed.graph, {tensor.name: tensor for tensor in proto.graph.initializer})
    kinds = element_types(typed.graph)
    for node in typed.graph.node:
        if node.op_type in ("Cast", "Constant", "ConstantOfShape"):
            raise ExportError(f"{_SUFFIX[low]}: node {node.name} is a {node.op_type}, which fixes a type.")
        own = kept.get(node.name, low)
        if node.op_type not in _UNTYPED:
            node.input[:] = [retyping.input_as(name, own, is_low=own == low) for name in node.input]
        retyping.nodes.append(node)
        retyping.homes |= {name: own for name in node.output if kinds.get(name) == TensorProto.FLOAT}
    retyping.finish()
    return typed


class _Retyping:
    """A graph whose nodes get types one by one, in their order.

    Attributes:
        homes: the type that a float value is made in.
        nodes: those that are done, with the casts between them.
    """

    def __init__(self, graph: onnx.GraphProto, weights: Mapping[str, TensorProto]) -> None:
        self.homes: dict[str, int] = {PIXELS: TensorProto.FLOAT}
        self.nodes: list[onnx.NodeProto] = []
        self._graph = graph
        self._weights = weights
        self._known = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
        self._there: set[str] = set()  # weights and casts

    def input_as(self, name: str, kind: int, *, is_low: bool) -> str:
        """Name of a float value or weight in a type, made where it is not there yet."""
        weight = self._weights.get(name)
        if weight is not None:
            new = name if is_low or weight.data_type != TensorProto.FLOAT else f"{name}_{_SUFFIX[kind]}"
            if new not in self._there:
                is_float = weight.data_type == TensorProto.FLOAT
                self._graph.initializer.append(_weight_as(weight, new, kind) if is_float else weight)
        elif self.homes.get(name, kind) == kind:
            return name
        else:
            new = f"{name}_{_SUFFIX[kind]}"
            if new not in self._there:
                self._cast(name, new, kind)
        self._there.add(new)
        return new

    def finish(self) -> None:
        """Cast the embeddings, so that what leaves the graph is what llama.cpp takes; list every type."""
        home = self.homes[EMBEDDINGS]
        if home != TensorProto.FLOAT:
            inner = f"{EMBEDDINGS}_{_SUFFIX[home]}"
            for node in self.nodes:
                for names in (node.input, node.output):
                    names[:] = [inner if name == EMBEDDINGS else name for name in names]
            self._list_as(EMBEDDINGS, inner, home)
            cast = helper.make_node("Cast", [inner], [EMBEDDINGS], f"cast/{EMBEDDINGS}", to=TensorProto.FLOAT)
            self.nodes.append(cast)
        inner_values = [value for value in self._graph.value_info if value.name not in self._weights]
        for value in inner_values:
            value.type.tensor_type.elem_type = self.homes.get(value.name, value.type.tensor_type.elem_type)
        del self._graph.value_info[:]
        self._graph.value_info.extend(inner_values)
        replace_nodes(self._graph, self.nodes)

    def _cast(self, name: str, new: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [name], [new], f"cast/{new}", to=kind))
        self._list_as(name, new, kind)

    def _list_as(self, name: str, new: str, kind: int) -> None:
        listed = onnx.ValueInfoProto()
        listed.CopyFrom(self._known[name])
        listed.name = new
        listed.type.tensor_type.elem_type = kind
        self._graph.value_info.append(listed)


def _weight_as(tensor: TensorProto, name: str, kind: int) -> TensorProto:
    """A float32 weight under a name, in a type."""
    values = numpy_helper.to_array(tensor)
    if kind == TensorProto.FLOAT16 and not _largest(tensor) <= FLOAT16_MAX:
        raise ExportError(
            f"fp16: weight {tensor.name!r} has values up to {_largest(tensor):.6g}, float16 ends at "
            f"{FLOAT16_MAX:g}. Export --vision fp32."
        )
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), name)


def _largest(tensor: TensorProto) -> float:
    return float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
