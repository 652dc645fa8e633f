"""Shapes of the values inside a vision graph, read from its file without a library; weights are not read.

An exported graph states them (`value_info`, onnx.proto), so what it takes to compute it is known ahead.
"""

import mmap
from pathlib import Path

from tinyllava_edge.onnx_check import GRAPH, MODEL, Field, Scan, Schema

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
