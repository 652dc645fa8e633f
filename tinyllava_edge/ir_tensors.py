"""The language model's tensors as they lie in an IR's .bin, in float32, read without OpenVINO.

Also what values become in each type, said here once more for the judges (`verify`, and `export`'s own check):
the writer is `export/openvino_weights.py`.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import BundleError
from tinyllava_edge.ir_check import Constant, read_constants

Floats = npt.NDArray[np.float32]
GROUP = 32  # columns that share a scale; all of a row where it does not divide them
_PARTS = (".scale", ".zero")
_DTYPES = {"f32": np.float32, "f16": np.float16, "i8": np.int8, "u4": np.uint8}
_NAMES = {"f32": "OV_F32", "f16": "OV_F16", "i8": "OV_INT8", "u4": "OV_INT4"}


class IrTensor(NamedTuple):
    """One tensor of a file: its type, as `precisions.EXACT_TYPES` names it, and how to read rows of it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parts: dict[str, tuple[Constant, npt.NDArray[np.uint8]]]

    def rows(self, start: int = 0, stop: int | None = None) -> Floats:
        """Rows from `start` on, dequantized."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        values = self._read("", start, stop)
        if ".zero" in self.parts:
            values = values - self._read(".zero", start, stop)
        if ".scale" in self.parts:
            values = values * self._read(".scale", start, stop)
        return values.reshape(stop - start, *self.shape[1:])

    def _read(self, part: str, start: int, stop: int) -> Floats:
        constant, data = self.parts[part]
        per_row = prod(constant.shape[1:])
        shape = (stop - start, *constant.shape[1:])
        if constant.kind == "u4":
            first, last = start * per_row, stop * per_row
            packed = data[first // 2 : -(-last // 2)]
            pairs = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
            return pairs[first % 2 :][: last - first].reshape(shape).astype(np.float32)
        typed = data.view(_DTYPES[constant.kind])
        return typed[start * per_row : stop * per_row].reshape(shape).astype(np.float32)


def open_tensors(path: Path) -> dict[str, IrTensor]:
    """The named tensors of an IR, in its order; the .bin is mapped.

    Raises:
        BundleError: the IR is not what export writes, or a tensor lacks its scale.
    """
    constants = read_constants(path)
    mapped = np.memmap(path.with_suffix(".bin"), dtype=np.uint8, mode="r")

    def part(name: str) -> tuple[Constant, npt.NDArray[np.uint8]]:
        constant = constants[name]
        return constant, mapped[constant.offset : constant.offset + constant.size]

    found = {}
    for name, constant in constants.items():
        if not name.endswith((".weight", ".bias")):
            continue
        parts = {kind: part(name + kind) for kind in ("", *_PARTS) if name + kind in constants}
        needed = {"i8": {"", ".scale"}, "u4": {"", ".scale", ".zero"}}.get(constant.kind, {""})
        if set(parts) != needed:
            raise BundleError(f"{path}: {name} of {constant.kind} lacks {sorted(needed - set(parts))}.")
        is_grouped = ".scale" in parts
        for kind in needed - {""}:
            if parts[kind][0].shape != (*constant.shape[:2], 1) or len(constant.shape) != 3:
                raise BundleError(
                    f"{path}: {name}{kind} is {list(parts[kind][0].shape)} for {list(constant.shape)}."
                )
        shape = (constant.shape[0], prod(constant.shape[1:])) if is_grouped else constant.shape
        found[name] = IrTensor(name, _NAMES[constant.kind], shape, parts)
    return found


def read_tensors(path: Path) -> Iterator[tuple[str, str, Floats]]:
    """Name, type and values of every tensor; `Raises` as `open_tensors`."""
    for name, tensor in open_tensors(path).items():
        yield name, tensor.kind, tensor.rows()


def rounded(values: Floats, kind: str) -> Floats:
    """What rows [n, columns], or a vector, hold once they are of a type."""
    if kind == "OV_F32":
        return values
    if kind == "OV_F16":
        return values.astype(np.float16).astype(np.float32)
    columns = values.shape[-1]
    groups = values.reshape(-1, GROUP if columns % GROUP == 0 else columns)
    if kind == "OV_INT8":
        scale = _half(np.max(np.abs(groups), axis=1) / np.float32(127))
        whole: Floats = np.rint(groups / scale).clip(-127, 127) * scale
        return whole.reshape(values.shape)
    low, high = groups.min(axis=1).clip(max=0), groups.max(axis=1).clip(min=0)
    scale = _half((high - low) / np.float32(15))
    zero = np.rint(-low[:, None] / scale).clip(0, 15)
    found: Floats = ((np.rint(groups / scale) + zero).clip(0, 15) - zero) * scale
    return found.reshape(values.shape)


def _half(scales: Floats) -> Floats:
    """A column of scales as float16 holds them; 1 for values that are all too small for one."""
    halves = scales.astype(np.float16).astype(np.float32)[:, None]
    return np.where(halves == 0, np.float32(1), halves)
