"""An OpenVINO IR of a bundle, read without OpenVINO and before it sees the file: only what `export` writes.

An IR is XML that names operations by type and opset, and constants by offset and size in the .bin beside it.
OpenVINO's reader takes any version, other opsets and extensions. So a file is refused for any element,
attribute, operation, type or shape that no exported graph has, for a constant outside the .bin or of another
size than its shape gives, and for a tensor that is not a language model's of the manifest.
"""

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from reprlib import repr as shown
from typing import NamedTuple, NoReturn
from xml.parsers import expat

from tinyllava_edge.errors import BundleError
from tinyllava_edge.manifest import LanguageSpec

IR_RULES = 1  # one more with each change of what passes
IR_VERSION = "11"  # of every OpenVINO since 2022
MAX_IR_BYTES = 64 << 20  # 36 layers are 3 MB
_MAX_ELEMENTS = 2_000_000
_MAX_SIZE = 1 << 31  # of a dimension
# Operations of every graph that export writes: all compute from their inputs and the states alone.
OPERATIONS = frozenset(
    (
        *("Add:1", "Assign:6", "Broadcast:3", "Concat:1", "Const:1", "Convert:1", "Cos:1", "Divide:1"),
        *("Gather:8", "Gelu:7", "Greater:1", "Less:1", "LessEqual:1", "LogicalAnd:1", "MVN:6", "MatMul:1"),
        *("Maximum:1", "Multiply:1", "Parameter:1", "Power:1", "ReadValue:6"),
        *("ReduceMean:1", "Reshape:1", "Result:1", "ScaledDotProductAttention:13", "Select:1", "Sin:1"),
        *("Softmax:8", "Split:1", "Sqrt:1", "Subtract:1", "Swish:4", "Tanh:1", "Transpose:1", "Unsqueeze:1"),
        "VariadicSplit:1",
    )
)
# Element -> its attributes, and what it may stand in.
_ELEMENTS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    name: (frozenset(attributes.split()), frozenset(parents.split()))
    for name, attributes, parents in (
        ("net", "name version", ""),
        ("layers", "", "net"),
        ("layer", "id name type version output_names", "layers"),
        ("input", "", "layer"),
        ("output", "", "layer"),
        ("port", "id precision names", "input output"),
        ("dim", "", "port"),
        ("edges", "", "net"),
        ("edge", "from-layer from-port to-layer to-port", "edges"),
        ("rt_info", "", "net"),
        (
            "data",
            "element_type shape offset size destination_type auto_broadcast m_pythondiv mode axis batch_dims "
            "transpose_a transpose_b output_type variable_id variable_type variable_shape keep_dims "
            "special_zero causal approximation_mode eps eps_mode normalize_variance num_splits",
            "layer",
        ),
    )
}
_BITS = {"f32": 32, "f16": 16, "i64": 64, "i32": 32, "i8": 8, "u4": 4}  # of constants
_NUMBER = re.compile(r"[0-9]{1,18}")
_PLAIN = re.compile(r"[A-Za-z0-9_./-]{1,200}")


class Constant(NamedTuple):
    """Where a constant's values are in the .bin, in bytes, and what they are."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


def check_ir(path: Path, weights: Mapping[str, int], variant: str, spec: LanguageSpec) -> None:
    """Refuse a graph that `export` would not write.

    Args:
        path: the .xml.
        weights: size of each file beside it, by name: the .bin.
        variant: name of the language variant.
        spec: what the manifest says of the language model.

    Raises:
        BundleError: names the file and what is in it.
    """
    bin_name = path.with_suffix(".bin").name
    if path.suffix != ".xml" or set(weights) != {bin_name}:
        raise BundleError(
            f"{path}: an IR is a .xml with its .bin beside it, and nothing else. Export it again."
        )
    found = _Reader(path, weights[bin_name]).read()
    expected = {f"{kind}.{layer}" for kind in ("keys", "values") for layer in range(spec.num_hidden_layers)}
    if found.states != expected:
        _refuse(path, f"{len(found.states)} states for {spec.num_hidden_layers} layers")
    tables = [
        constant
        for name, constant in found.constants.items()
        if name.endswith(("embed_tokens.weight", "token_embeddings.weight"))
    ]
    sizes = [(*table.shape[:1], prod(table.shape[1:])) for table in tables]
    if sizes != [(spec.vocab_size, spec.hidden_size)]:
        _refuse(path, f"no token embedding of {spec.vocab_size} x {spec.hidden_size}, the manifest's")
    allowed = _KINDS.get(variant)
    if allowed is None or tables[0].kind not in allowed:
        _refuse(path, f"a token embedding of {tables[0].kind} in the variant {shown(variant)}")


# Types of a variant's matrices.
_KINDS = {"ov_f32": ("f32",), "ov_f16": ("f16",), "ov_int8": ("i8",), "ov_int4": ("i8", "u4")}


def read_constants(path: Path) -> dict[str, Constant]:
    """Where the tensors of an IR that `check_ir` passed are in its .bin, by name."""
    return _Reader(path, path.with_suffix(".bin").stat().st_size).read().constants


class _Found(NamedTuple):
    constants: dict[str, Constant]
    states: set[str]


class _Reader:
    """One walk over the XML, which refuses what is not listed."""

    def __init__(self, path: Path, weights_bytes: int) -> None:
        self._path, self._weights_bytes = path, weights_bytes
        self._found = _Found({}, set())
        self._open: list[str] = []
        self._layer: dict[str, str] = {}
        self._ids: set[str] = set()
        self._elements = 0

    def read(self) -> _Found:
        """What is in the file."""
        if self._path.stat().st_size > MAX_IR_BYTES:
            _refuse(self._path, f"more than {MAX_IR_BYTES:,} bytes of XML")
        parser = expat.ParserCreate("UTF-8")
        parser.StartDoctypeDeclHandler = self._no_doctype  # without one there are no entities
        parser.ProcessingInstructionHandler = self._no_instruction
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        try:
            parser.Parse(self._path.read_bytes(), True)
        except expat.ExpatError as error:
            _refuse(self._path, f"XML that cannot be read ({error})")
        return self._found

    def _no_doctype(self, *_: object) -> None:
        _refuse(self._path, "a document type, which may define entities")

    def _no_instruction(self, *_: object) -> None:
        _refuse(self._path, "a processing instruction")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        parent = self._open[-1] if self._open else ""
        known, parents = _ELEMENTS.get(name, (frozenset(), frozenset()))
        if name not in _ELEMENTS or parent not in (parents or {""}) or self._elements > _MAX_ELEMENTS:
            _refuse(self._path, f"the element {shown(name)} in {shown(parent)}")
        if strange := attributes.keys() - known:
            _refuse(self._path, f"the attribute {shown(sorted(strange)[0])} of {name}")
        self._open.append(name)
        if name == "net" and attributes.get("version") != IR_VERSION:
            raise BundleError(
                f"{self._path}: an IR of version {shown(attributes.get('version'))}, of another OpenVINO; "
                f"this program reads version {IR_VERSION}. Export the bundle again."
            )
        if name == "layer":
            self._start_layer(attributes)
        elif name == "data":
            self._check_data(attributes)

    def _start_layer(self, attributes: dict[str, str]) -> None:
        self._layer = attributes
        version = attributes.get("version", "").removeprefix("opset")
        operation = f"{attributes.get('type', '')}:{version}"
        if operation not in OPERATIONS or not attributes.get("version", "").startswith("opset"):
            _refuse(self._path, f"the operation {shown(operation)}")
        number = attributes.get("id", "")
        if not _NUMBER.fullmatch(number) or number in self._ids:
            _refuse(self._path, f"the layer {shown(number)} twice, or without a number")
        self._ids.add(number)

    def _check_data(self, attributes: dict[str, str]) -> None:
        if (name := attributes.get("variable_id")) is not None:
            if not _PLAIN.fullmatch(name):
                _refuse(self._path, f"the state {shown(name)}")
            self._found.states.add(name)
        if self._layer.get("type") != "Const":
            return
        kind = attributes.get("element_type", "")
        sizes = [part.strip() for part in attributes.get("shape", "").split(",") if part.strip()]
        numbers = [*sizes, attributes.get("offset", ""), attributes.get("size", "")]
        if kind not in _BITS or not all(map(_NUMBER.fullmatch, numbers)):
            _refuse(self._path, f"a constant of {shown(kind)} and {shown(numbers)}")
        *shape, offset, size = map(int, numbers)
        name = self._layer.get("name", "")
        if max(shape, default=0) > _MAX_SIZE or -(-prod(shape) * _BITS[kind] // 8) != size:
            _refuse(self._path, f"the constant {shown(name)} of {shape} {kind} in {size} bytes")
        if offset + size > self._weights_bytes:
            _refuse(self._path, f"the constant {shown(name)}, which ends behind its .bin: it is cut off")
        if name in self._found.constants:
            _refuse(self._path, f"two constants {shown(name)}")
        self._found.constants[name] = Constant(kind, tuple(shape), offset, size)

    def _end(self, name: str) -> None:
        self._open.pop()

    def _text(self, text: str) -> None:
        wanted = r"-?[0-9]{1,10}" if self._open[-1:] == ["dim"] else r"\s*"
        if not re.fullmatch(wanted, text):
            _refuse(self._path, f"the text {shown(text)}")


def _refuse(path: Path, found: str) -> NoReturn:
    raise BundleError(
        f"{path}: holds {found}. A graph that tinyllava-edge export writes has no such thing; export the "
        "bundle again, or do not trust it."
    )
