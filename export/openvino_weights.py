"""Tensors as constants of an OpenVINO graph: float32, float16, or integers in groups that share a scale.

A matrix of integers stands as Constant -> Convert (-> Subtract zero) -> Multiply scale -> Reshape, which the
CPU plugin's products read as it is (docs/sources/openvino.md#compressed-weights). Values are written to files
that are mapped, a few rows at a time, so that no more of the model than that is in memory.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
from openvino import Type
from openvino import opset13 as op

Floats = npt.NDArray[np.float32]
# Columns that share a scale, as in Q8_0 and Q4_0; all of them in a row that it does not divide. One scale for
# a row loses four times as much (docs/sources/openvino.md#accuracy-of-int8).
GROUP = 32
ROWS_VALUES = 1 << 22  # converted at once


def group_of(columns: int) -> int:
    """Columns of a row that share a scale."""
    return GROUP if columns % GROUP == 0 else columns


def quantize_int8(rows: Floats) -> dict[str, Any]:
    """Rows [n, columns] to integers -127 to 127 [n, groups, group] and scales [n, groups, 1] float16."""
    groups = rows.reshape(len(rows), -1, group_of(rows.shape[1]))
    scale = _scale(np.abs(groups).max(axis=2, keepdims=True) / np.float32(127))
    values = np.clip(np.rint(groups / scale.astype(np.float32)), -127, 127).astype(np.int8)
    return {"": values, ".scale": scale}


def quantize_int4(rows: Floats) -> dict[str, Any]:
    """Rows to integers 0 to 15, two a byte, the first in the low half, and each group's scale and zero."""
    groups = rows.reshape(len(rows), -1, group_of(rows.shape[1]))
    low = np.minimum(groups.min(axis=2, keepdims=True), 0)
    high = np.maximum(groups.max(axis=2, keepdims=True), 0)
    scale = _scale((high - low) / np.float32(15))
    wide = scale.astype(np.float32)
    zero = np.clip(np.rint(-low / wide), 0, 15)
    values = np.clip(np.rint(groups / wide) + zero, 0, 15).astype(np.uint8)
    return {"": _packed(values), ".scale": scale, ".zero": _packed(zero.astype(np.uint8))}


def _scale(values: Floats) -> npt.NDArray[np.float16]:
    halves = values.astype(np.float16)
    halves[halves == 0] = 1  # a group of zeros
    return halves


def _packed(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    flat = np.append(values, np.zeros(values.size % 2, dtype=np.uint8)).reshape(-1, 2)
    return (flat[:, 0] | flat[:, 1] << 4).astype(np.uint8)


# Name of a language type -> how its matrices are made; embedding and head of ov_int4 are ov_int8's.
_CONVERT: dict[str, Callable[[Floats], dict[str, Any]]] = {
    "ov_f32": lambda rows: {"": rows},
    "ov_f16": lambda rows: {"": rows.astype(np.float16)},
    "ov_int8": quantize_int8,
    "ov_int4": quantize_int4,
}
TYPES = tuple(_CONVERT)
_WIDE_IN_INT4 = ("embed_tokens.weight", "token_embeddings.weight", "lm_head.weight")


def type_of(name: str, shape: tuple[int, ...], variant: str) -> str:
    """The type of a tensor in a variant: vectors are always float32."""
    if len(shape) < 2:
        return "ov_f32"
    return "ov_int8" if variant == "ov_int4" and name.endswith(_WIDE_IN_INT4) else variant


class Weights:
    """Tensors of a graph in files that are mapped: written one after another, then made constants.

    Args:
        scratch: a directory on a disk; the files are left in it.
        variant: one of `TYPES`.
    """

    def __init__(self, scratch: Path, variant: str) -> None:
        self._scratch, self._variant = scratch, variant
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._nodes: dict[str, Any] = {}
        self._kept: list[Any] = []  # the memory of the nodes, which they do not hold

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    @property
    def constants(self) -> set[str]:
        """Names of the nodes of arrays so far."""
        return set(self._nodes)

    def add(self, name: str, shape: tuple[int, ...], slices: Iterable[Floats]) -> None:
        """Write a tensor whose rows come in slices, each but the last of an even number of them."""
        convert = _CONVERT[type_of(name, shape, self._variant)]
        number = len(self._shapes)
        for rows in slices:
            for part, values in convert(rows).items():
                with (self._scratch / f"{number}{part}").open("ab") as file:
                    values.tofile(file)
        self._shapes[name] = shape

    def values(self, name: str) -> Any:
        """A node with a tensor's values in float32."""
        shape, kind = self._shapes[name], self._type(name)
        if kind == "ov_f32":
            return self._constant(name, "", shape, Type.f32)
        if kind == "ov_f16":
            return op.convert(self._constant(name, "", shape, Type.f16), Type.f32)
        groups = _groups(shape)
        values = op.convert(self._constant(name, "", groups, _KINDS[kind]), Type.f16)
        if kind == "ov_int4":
            zero = self._constant(name, ".zero", (*groups[:2], 1), Type.u4)
            values = op.subtract(values, op.convert(zero, Type.f16))
        values = op.multiply(values, self._constant(name, ".scale", (*groups[:2], 1), Type.f16))
        rows = op.reshape(values, op.constant(np.array(shape, dtype=np.int64)), False)
        return op.convert(rows, Type.f32)

    def rows(self, name: str, ids: Any) -> Any:
        """Rows [1, n, columns] of a table, of which only these are made float32."""
        shape, kind = self._shapes[name], self._type(name)
        axis = op.constant(np.int32(0))
        if kind in ("ov_f32", "ov_f16"):
            table = self._constant(name, "", shape, Type.f32 if kind == "ov_f32" else Type.f16)
            return op.convert(op.gather(table, ids, axis), Type.f32)
        groups = _groups(shape)
        values = op.gather(self._constant(name, "", groups, Type.i8), ids, axis)
        scale = op.gather(self._constant(name, ".scale", (*groups[:2], 1), Type.f16), ids, axis)
        wide = op.multiply(op.convert(values, Type.f32), op.convert(scale, Type.f32))
        return op.reshape(wide, op.constant(np.array([0, 0, -1], dtype=np.int64)), True)

    def _type(self, name: str) -> str:
        return type_of(name, self._shapes[name], self._variant)

    def _constant(self, name: str, part: str, shape: tuple[int, ...], kind: Any) -> Any:
        """The one node of an array, over the mapped file."""
        key = name + part
        if key not in self._nodes:
            path = self._scratch / f"{list(self._shapes).index(name)}{part}"
            array = np.memmap(path, dtype=_ARRAYS[kind.get_type_name()], mode="r+")
            tensor = openvino.Tensor(array, openvino.Shape(list(shape)), kind)
            node = openvino.op.Constant(tensor, True)
            node.set_friendly_name(key)
            self._kept.append((array, tensor))
            self._nodes[key] = node
        return self._nodes[key]


_KINDS = {"ov_int8": Type.i8, "ov_int4": Type.u4}
_ARRAYS = {"f32": np.float32, "f16": np.float16, "i8": np.int8, "u4": np.uint8}


def _groups(shape: tuple[int, ...]) -> tuple[int, int, int]:
    rows, columns = shape
    return rows, columns // group_of(columns), group_of(columns)
