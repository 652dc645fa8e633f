"""Shapes of the values inside a vision graph, read from its file without a library; weights are not read.

An exported graph states them (`value_info`, onnx.proto), so what it takes to compute it is known ahead.
"""

import mmap
from math import prod
from pathlib import Path

from tinyllava_edge.onnx_check import GRAPH, MODEL, NODE, TENSOR, Field, Scan, Schema

# Operators that multiply: the input that says over how much each value of the output is summed, and its axes.
_SUMMED = {b"MatMul": (0, slice(-1, None)), b"Gemm": (0, slice(-1, None)), b"Conv": (1, slice(1, None))}
_VALUE: Schema = {1: Field("name"), 2: Field("type"), 3: Field("doc_string")}
_TYPE: Schema = {1: Field("tensor_type"), 6: Field("denotation")}
_TENSOR_TYPE: Schema = {1: Field("elem_type", (0,)), 2: Field("shape")}
_SHAPE: Schema = {1: Field("dim", is_list=True)}
_DIM: Schema = {1: Field("dim_value", (0,)), 2: Field("dim_param"), 3: Field("denotation")}


def read_activations(path: Path) -> list[tuple[int, ...]]:
    """Shapes of the values that have a row for each picture, without that first dimension.

    Raises:
        BundleError: the file is damaged, or none of ours.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        scan = Scan(path, data, {})
        values = [
            place
            for _, *graph in _inside(scan, MODEL, ["graph"], 0, len(data))
            for _, *place in _inside(scan, GRAPH, ["value_info"], *graph)
        ]
        shapes = [_shape(scan, *place) for place in values]
    return [tuple(shape[1:]) for shape in shapes if shape and shape[0] == 0 and all(shape[1:])]


def _shape(scan: Scan, start: int, end: int) -> list[int]:
    """Dimensions of a value; 0 is one by name, as the batch is."""
    found = [("", start, end)]
    for schema, name in ((_VALUE, "type"), (_TYPE, "tensor_type"), (_TENSOR_TYPE, "shape"), (_SHAPE, "dim")):
        found = [inner for _, *place in found for inner in _inside(scan, schema, [name], *place)]
    dimensions = []
    for _, *place in found:
        numbers = [
            scan.varint(first, last)[0] for _, first, last in _inside(scan, _DIM, ["dim_value"], *place)
        ]
        dimensions.append(numbers[0] if numbers else 0)
    return dimensions


def _inside(scan: Scan, schema: Schema, names: list[str], start: int, end: int) -> list[tuple[str, int, int]]:
    return [field for field in scan.read(schema, start, end) if field[0] in names]


def product_flops(path: Path) -> int | None:
    """Floating-point operations of all matrix products and convolutions for one picture; a multiply-add is 2.

    Quantized graphs hold the same products between their QuantizeLinear and DequantizeLinear.

    Returns:
        None where the graph does not state the shapes that it takes.

    Raises:
        BundleError: the file is damaged, or none of ours.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        scan = Scan(path, data, {})
        (graph,) = [place for _, *place in _inside(scan, MODEL, ["graph"], 0, len(data))]
        shapes: dict[bytes, list[int]] = {}
        nodes: list[dict[str, list[bytes]]] = []
        for kind, *place in scan.read(GRAPH, *graph):
            if kind in ("value_info", "input", "output", "initializer"):
                schema, read = (TENSOR, _dims) if kind == "initializer" else (_VALUE, _shape)
                ((_, first, last),) = _inside(scan, schema, ["name"], *place)
                shapes[data[first:last]] = read(scan, *place)
            elif kind == "node":
                names = ("op_type", "input", "output")
                fields = [(key, data[first:last]) for key, first, last in scan.read(NODE, *place)]
                nodes.append({name: [text for key, text in fields if key == name] for name in names})
    total = 0
    for node in nodes:
        (operator,) = node["op_type"]
        if operator in _SUMMED:
            which, axes = _SUMMED[operator]
            factor, made = shapes.get(node["input"][which]), shapes.get(node["output"][0])
            if not factor or not made:
                return None
            # The batch has no number: one picture.
            total += 2 * prod(size or 1 for size in made) * prod(size or 1 for size in factor[axes])
    return total


def _dims(scan: Scan, start: int, end: int) -> list[int]:
    """Dimensions of a weight, packed or each by itself."""
    found = []
    for _, first, last in _inside(scan, TENSOR, ["dims"], start, end):
        while first < last:
            value, first = scan.varint(first, last)
            found.append(value)
    return found
