"""The header of a GGUF file, read without a library and before any sees it.

Nothing of it is believed: counts, lengths, types and places are held against limits and against the file's
own size while they are read. Layout: the GGUF page of github.com/ggml-org/ggml; version 2 has the same.
"""

import mmap
import struct
from math import prod
from pathlib import Path
from reprlib import repr as shown
from typing import Any, NamedTuple, NoReturn

from tinyllava_edge.errors import BundleError

VERSIONS = (2, 3)
MAX_COUNT = 65_536  # of keys, and of tensors
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 16 << 20
MAX_HEADER_BYTES = 256 << 20
MAX_ENTRIES = (
    4_000_000  # of all arrays together: tokens, scores, types and merges of the largest have 1.5 million
)
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4
MAX_VALUES = 1 << 62  # of a tensor; no file has them, and nothing that is computed from it overflows
_DEFAULT_ALIGNMENT = 32

# Type of a value by number, and its code of `struct`.
_KINDS = (
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array"),
    *("uint64", "int64", "float64"),
)
_CODES = dict(zip(_KINDS, "BbHhIif?  Qqd", strict=True))
_STRUCTS = {code: struct.Struct(f"<{code}") for code in "BbHhIif?Qqd"}

# Types of tensors that export writes, by number (ggml.h, enum ggml_type): name, values and bytes of a block.
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 8: ("Q8_0", 32, 34), 14: ("Q6_K", 256, 210),
    13: ("Q5_K", 256, 176), 7: ("Q5_1", 32, 24), 6: ("Q5_0", 32, 22), 12: ("Q4_K", 256, 144),
    20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136), 3: ("Q4_1", 32, 20), 2: ("Q4_0", 32, 18),
    11: ("Q3_K", 256, 110), 21: ("IQ3_S", 256, 110), 10: ("Q2_K", 256, 84),
    35: ("TQ2_0", 256, 66), 34: ("TQ1_0", 256, 54),
}  # fmt: skip


class Entry(NamedTuple):
    """A value of the header; strings inside an array stay bytes."""

    kind: str  # "uint32", "string", "array of int32"
    value: Any


class Tensor(NamedTuple):
    """A tensor's shape, outermost dimension first, and its type."""

    shape: tuple[int, ...]
    kind: str


class GgufHeader(NamedTuple):
    """Everything before the weights."""

    entries: dict[str, Entry]
    tensors: dict[str, Tensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file that somebody else wrote; weights are not read.

    Raises:
        BundleError: names the file, what was found in it and what was expected.
    """
    if not path.stat().st_size:
        refuse(path, "0 bytes", "a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Reader(path, data).read()


def refuse(path: Path, found: str, expected: str) -> NoReturn:
    """Raise the error of a file that is not what export writes."""
    raise BundleError(
        f"{path}: {found}; expected {expected}. Copy or export the bundle again, or do not trust it."
    )


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._end = path, data, min(len(data), MAX_HEADER_BYTES)
        self._at = self._entries = 0

    def read(self) -> GgufHeader:
        magic = self._bytes(4, "the magic number")
        if magic != b"GGUF":
            self._refuse(f"begins with {shown(magic)}", "b'GGUF'")
        version = self._number("I")
        if version not in VERSIONS:
            self._refuse(f"version {version}", "2 or 3")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        for count, what in ((num_tensors, "tensors"), (num_keys, "keys")):
            if count > MAX_COUNT:
                self._refuse(f"{count} {what}", f"at most {MAX_COUNT}")
        entries: dict[str, Entry] = {}
        for _ in range(num_keys):
            key = self._text(MAX_KEY_BYTES, "a key")
            if key in entries:
                self._refuse(f"the key {shown(key)} twice", "it once")
            entries[key] = self._entry(key)
        tensors: dict[str, Tensor] = {}
        places = []
        for _ in range(num_tensors):
            name = self._text(MAX_KEY_BYTES, "a tensor's name")
            if name in tensors:
                self._refuse(f"the tensor {shown(name)} twice", "it once")
            tensors[name], size = self._tensor(name)
            places.append((name, self._number("Q"), size))
        self._check_places(places, self._alignment(entries))
        return GgufHeader(entries, tensors)

    def _entry(self, key: str) -> Entry:
        kind = self._kind(key)
        if kind == "string":
            return Entry(kind, self._text(MAX_STRING_BYTES, f"the value of {shown(key)}"))
        if kind == "array":
            inner = self._kind(key)
            return Entry(f"array of {inner}", self._array(key, inner))
        if kind == "bool" and self._data[self._at : self._at + 1] > b"\x01":
            self._refuse(f"{shown(key)} is the bool {self._data[self._at]}", "0 or 1")
        return Entry(kind, self._number(_CODES[kind]))

    def _kind(self, key: str) -> str:
        number = self._number("I")
        if number >= len(_KINDS):
            self._refuse(f"{shown(key)} is of type {number}", f"a type below {len(_KINDS)}")
        return _KINDS[number]

    def _array(self, key: str, kind: str) -> tuple[Any, ...] | list[bytes]:
        count = self._number("Q")
        self._entries += count
        if self._entries > MAX_ENTRIES:
            self._refuse(f"arrays of {self._entries} entries up to {shown(key)}", f"at most {MAX_ENTRIES}")
        if kind == "array":
            self._refuse(f"{shown(key)} is an array of arrays", "numbers or strings in it")
        if kind == "string":
            return self._strings(key, count)
        code = f"<{count}{_CODES[kind]}"
        return struct.unpack(code, self._bytes(struct.calcsize(code), f"the array {shown(key)}"))

    def _strings(self, key: str, count: int) -> list[bytes]:
        """The strings of an array; of the largest there are hundreds of thousands, so in one loop."""
        data, at, last = self._data, self._at, self._end - 8
        length_at = _STRUCTS["Q"].unpack_from
        found = []
        for _ in range(count):
            if at > last:
                self._refuse_end(f"the array {shown(key)}")
            (length,) = length_at(data, at)
            at += 8
            if length > MAX_STRING_BYTES:
                self._refuse(f"a string of {length} bytes in {shown(key)}", f"at most {MAX_STRING_BYTES}")
            start, at = at, at + length
            if at > self._end:
                self._refuse_end(f"a string of {length} bytes in {shown(key)}")
            found.append(data[start:at])
        self._at = at
        return found

    def _tensor(self, name: str) -> tuple[Tensor, int]:
        """A tensor and its bytes."""
        dimensions = self._number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self._refuse(f"tensor {shown(name)} has {dimensions} dimensions", f"1 to {MAX_DIMENSIONS}")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        if not 0 < prod(shape) <= MAX_VALUES:
            self._refuse(f"tensor {shown(name)} of {list(shape)} values", f"1 to {MAX_VALUES} in all")
        number = self._number("I")
        if number not in TENSOR_TYPES:
            self._refuse(f"tensor {shown(name)} is of type {number}", "a type that export writes")
        kind, block, size = TENSOR_TYPES[number]
        if shape[0] % block:
            self._refuse(
                f"tensor {shown(name)} has rows of {shape[0]} values", f"a multiple of {block} for {kind}"
            )
        return Tensor(shape[::-1], kind), prod(shape) // block * size

    def _alignment(self, entries: dict[str, Entry]) -> int:
        entry = entries.get("general.alignment", Entry("uint32", _DEFAULT_ALIGNMENT))
        kind, value = entry.kind, entry.value
        if kind != "uint32" or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
            self._refuse(
                f"an alignment of {shown(value)} ({kind})", f"a power of 2, up to {MAX_ALIGNMENT} (uint32)"
            )
        return int(value)

    def _check_places(self, places: list[tuple[str, int, int]], alignment: int) -> None:
        """The tensors lie one behind the other: aligned, none over another, all inside the file."""
        start, expected = _aligned(self._at, alignment), 0
        for name, offset, size in places:
            if offset != expected:
                self._refuse(
                    f"tensor {shown(name)} at offset {offset}", f"{expected}, behind the one before it"
                )
            if start + offset + size > len(self._data):
                self._refuse(
                    f"tensor {shown(name)} ends at byte {start + offset + size} of {len(self._data)}",
                    "it inside the file, which is cut off or damaged",
                )
            expected = _aligned(offset + size, alignment)

    def _text(self, limit: int, what: str) -> str:
        length = self._number("Q")
        if length > limit:
            self._refuse(f"{what} of {length} bytes", f"at most {limit}")
        text = self._bytes(length, what)
        try:
            return text.decode()
        except UnicodeDecodeError:
            self._refuse(f"{what} is {shown(text)}", "UTF-8")

    def _number(self, code: str) -> Any:
        number = _STRUCTS[code]
        if self._at + number.size > self._end:
            self._refuse_end("a number")
        self._at += number.size
        return number.unpack_from(self._data, self._at - number.size)[0]

    def _bytes(self, length: int, what: str) -> bytes:
        if self._at + length > self._end:
            self._refuse_end(what)
        self._at += length
        return self._data[self._at - length : self._at]

    def _refuse_end(self, what: str) -> NoReturn:
        self._refuse(
            f"ends within {what}",
            f"a whole header, of at most {MAX_HEADER_BYTES} bytes: it is cut off or damaged",
        )

    def _refuse(self, found: str, expected: str) -> NoReturn:
        refuse(self._path, found, expected)


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
