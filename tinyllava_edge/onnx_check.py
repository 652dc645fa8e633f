"""An ONNX file of a bundle, read without a library and before any sees it: only what `export` writes passes.

Libraries open the files that a graph names as its weights (ONNX Runtime up to 1.23 wherever they are), and
run the loops that it holds. So a file is refused for any field, operator or place of weights that no
exported graph has. Field numbers are those of onnx.proto (github.com/onnx/onnx, onnx/onnx.proto); a message
is read as protobuf's encoding says (protobuf.dev/programming-guides/encoding), only stricter: no groups,
nothing unknown, and nothing twice that is there once, of which a parser would take the last.
"""

import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from tinyllava_edge.errors import BundleError

# Operators of every graph that export writes, in all precisions, of every tower and connector, and what other
# versions of the exporter write for the same: all compute once, from their inputs alone, and hold no graph.
OPERATORS = frozenset(
    b"Add Cast Clip Concat Constant Conv DequantizeLinear Div Erf Expand Flatten Gather Gemm Identity "
    b"LayerNormalization MatMul Mul Neg Pow QuantizeLinear Reciprocal ReduceMean Relu Reshape Shape Sigmoid "
    b"Slice Softmax Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze Where".split()
)
DOMAINS = (b"", b"ai.onnx")  # the standard operators, of which every runtime has its own
RULES = 1  # one more with each change of what passes: graphs that were read by other rules are read again
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_NUMBER = re.compile(rb"[0-9]{1,18}")
_MAX_FIELDS = 1_000_000  # an exported graph of the largest tower has some 50 000

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}


class Field(NamedTuple):
    """What a field may be: its wire types, and whether it may be there more than once."""

    name: str
    wires: tuple[int, ...] = (_BYTES,)
    is_list: bool = False


def _numbers(name: str, wire: int = _VARINT) -> Field:
    return Field(name, (wire, _BYTES), is_list=True)  # each by itself or packed


_ONE = (_VARINT,)
# Fields by number; a text stands for one that would run something else, or set or name other things.
Schema = Mapping[int, Field | str]
MODEL: Schema = {
    1: Field("ir_version", _ONE),
    2: Field("producer_name"),
    3: Field("producer_version"),
    4: Field("domain"),
    5: Field("model_version", _ONE),
    6: Field("doc_string"),
    7: Field("graph"),
    8: Field("opset_import", is_list=True),
    14: "metadata, which can set options of a session",
    20: "training information",
    25: "local functions",
}
_OPSET: Schema = {1: Field("domain"), 2: Field("version", _ONE)}
GRAPH: Schema = {
    1: Field("node", is_list=True),
    2: Field("name"),
    5: Field("initializer", is_list=True),
    10: Field("doc_string"),
    11: Field("input", is_list=True),
    12: Field("output", is_list=True),
    13: Field("value_info", is_list=True),
    15: "sparse weights",
}
NODE: Schema = {
    1: Field("input", is_list=True),
    2: Field("output", is_list=True),
    3: Field("name"),
    4: Field("op_type"),
    5: Field("attribute", is_list=True),
    6: Field("doc_string"),
    7: Field("domain"),
}
_ATTRIBUTE: Schema = {
    1: Field("name"),
    2: Field("f", (_FIXED32,)),
    3: Field("i", _ONE),
    4: Field("s"),
    5: Field("t"),
    6: "a graph inside a node",
    7: _numbers("floats", _FIXED32),
    8: _numbers("ints"),
    9: Field("strings", is_list=True),
    10: Field("tensors", is_list=True),
    11: "graphs inside a node",
    13: Field("doc_string"),
    20: Field("type", _ONE),
    22: "sparse weights",
    23: "sparse weights",
}
TENSOR: Schema = {
    1: _numbers("dims"),
    2: Field("data_type", _ONE),
    4: _numbers("float_data", _FIXED32),
    5: _numbers("int32_data"),
    6: Field("string_data", is_list=True),
    7: _numbers("int64_data"),
    8: Field("name"),
    9: Field("raw_data"),
    10: _numbers("double_data", _FIXED64),
    11: _numbers("uint64_data"),
    12: Field("doc_string"),
    13: Field("external_data", is_list=True),
    14: Field("data_location", _ONE),
}
_ENTRY: Schema = {1: Field("key"), 2: Field("value")}


def check_onnx(path: Path, apart: Mapping[str, int]) -> None:
    """Refuse a graph that `export` would not write.

    Args:
        path: the file; it is mapped, weights inside are not read.
        apart: size of each file beside it that may hold its weights, by name.

    Raises:
        BundleError: names the file and what is in it.
    """
    if path.suffix != ".onnx":  # another name makes ONNX Runtime read its own, other format
        raise BundleError(f"{path}: the name of a graph ends in .onnx. Export the bundle again.")
    if not path.stat().st_size:
        raise BundleError(f"{path}: is empty. Export the bundle again.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        Scan(path, data, apart).check_model()


class Scan:
    """A walk over a file's messages; what no exported graph has is a BundleError that names the file."""

    def __init__(self, path: Path, data: mmap.mmap, apart: Mapping[str, int]) -> None:
        self._path, self._data, self._apart = path, data, apart
        self._fields = 0

    def check_model(self) -> None:
        """Refuse what no exported graph has, wherever it is."""
        parts = list(self.read(MODEL, 0, len(self._data)))
        if not {"graph", "opset_import"} <= {name for name, _, _ in parts}:
            self._refuse("no graph, or none of its operators' version: it is cut off or damaged")
        for name, start, end in parts:
            if name == "opset_import":
                self._check_domain(dict(self._texts(_OPSET, start, end)).get("domain", b""))
            elif name == "graph":
                self._check_graph(start, end)

    def _check_graph(self, start: int, end: int) -> None:
        for name, first, last in self.read(GRAPH, start, end):
            if name == "node":
                self._check_node(first, last)
            elif name == "initializer":
                self._check_tensor(first, last)

    def _check_node(self, start: int, end: int) -> None:
        facts: dict[str, bytes] = {}
        for name, first, last in self.read(NODE, start, end):
            if name in ("op_type", "domain"):
                facts[name] = self._data[first:last]
            elif name == "attribute":
                for kind, begin, stop in self.read(_ATTRIBUTE, first, last):
                    if kind in ("t", "tensors"):
                        self._check_tensor(begin, stop)
        self._check_domain(facts.get("domain", b""))
        if facts.get("op_type") not in OPERATORS:
            self._refuse(f"the operator {_shown(facts.get('op_type', b''))}")

    def _check_domain(self, domain: bytes) -> None:
        if domain not in DOMAINS:
            self._refuse(f"operators of {_shown(domain)}, which are not standard")

    def _check_tensor(self, start: int, end: int) -> None:
        entries: dict[bytes, bytes] = {}
        is_apart = False
        for name, first, last in self.read(TENSOR, start, end):
            if name == "data_location":
                is_apart = self._data[first:last] != b"\0"
            elif name == "external_data":
                entry = dict(self._texts(_ENTRY, first, last))
                key = entry.get("key", b"")
                if key in entries:
                    self._refuse(f"weights whose {_shown(key)} is given twice")
                entries[key] = entry.get("value", b"")
        if is_apart or entries:
            self._check_place(entries)

    def _check_place(self, entries: Mapping[bytes, bytes]) -> None:
        location = entries.get(b"location", b"")
        size = self._apart.get(location.decode()) if _PLAIN_NAME.fullmatch(location) else None
        if size is None:
            listed = ", ".join(self._apart) or "none"
            self._refuse(f"weights in the file {_shown(location)}; those that its variant lists: {listed}")
        numbers = [entries.get(key, b"") for key in (b"offset", b"length")]
        if len(entries) != 3 or not all(map(_NUMBER.fullmatch, numbers)):
            self._refuse("weights apart without location, offset and length, or with more")
        if sum(map(int, numbers)) > size:
            offset, length = map(int, numbers)
            self._refuse(f"weights at {offset} + {length} of {_shown(location)}, which has {size} bytes")

    def _texts(self, schema: Schema, start: int, end: int) -> Iterator[tuple[str, bytes]]:
        return ((name, self._data[first:last]) for name, first, last in self.read(schema, start, end))

    def read(self, schema: Schema, start: int, end: int) -> Iterator[tuple[str, int, int]]:
        """Name, start and end of each field's content in the message from `start` to `end`."""
        seen: set[int] = set()
        while start < end:
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                self._refuse(f"more than {_MAX_FIELDS} fields")
            tag, start = self.varint(start, end)
            number, wire = tag >> 3, tag & 7
            field = schema.get(number)
            if not isinstance(field, Field) or wire not in field.wires:
                self._refuse(field if isinstance(field, str) else f"field {number} of type {wire}")
            if number in seen and not field.is_list:
                self._refuse(f"{field.name} twice")
            seen.add(number)
            if wire == _VARINT:
                stop = self.varint(start, end)[1]
            elif wire == _BYTES:
                length, start = self.varint(start, end)
                stop = start + length
            else:
                stop = start + _WIDTHS[wire]
            if stop > end:
                self._refuse(f"a {field.name} that ends behind what holds it: it is cut off or damaged")
            yield field.name, start, stop
            start = stop

    def varint(self, start: int, end: int) -> tuple[int, int]:
        """Value of the number at `start`, and where it ends."""
        value = 0
        for index in range(min(10, end - start)):
            byte = self._data[start + index]
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value, start + index + 1
        self._refuse("a number without an end: it is cut off or damaged")

    def _refuse(self, found: str) -> NoReturn:
        raise BundleError(
            f"{self._path}: holds {found}. A graph that tinyllava-edge export writes has no such thing; "
            "export the bundle again, or do not trust it."
        )


def _shown(text: bytes) -> str:
    return repr(text[:100].decode("ascii", "backslashreplace"))
