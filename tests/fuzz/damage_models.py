"""Damage that leaves model files readable: to a GGUF's header, a graph's fields, a SentencePiece model's."""

import random
import struct
from collections.abc import Callable
from typing import Any

import onnx

from tests.fuzz.damage_bytes import bytes_damaged

# GGUF's value types (gguf.md of ggml-org/ggml): bytes of the plain ones; 8 is text, 9 an array.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _ARRAY = 8, 9
_ODD = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    31,
    32,
    33,
    63,
    127,
    255,
    256,
    512,
    513,
    4096,
    65_535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
)
_ODD_64 = (*_ODD, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_ODD_TEXTS = (
    b"",
    b"llama\0",
    b"gpt2",
    b"qwen2vl",
    b"mamba",
    b"clip",
    b"t5",
    b"\xff\xfe",
    b"a" * 200,
    b"general",
)
Field = tuple[int, int]  # where a number or a text is, and its bytes


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 4
        self.numbers: list[Field] = []
        self.texts: list[Field] = []  # without their lengths

    def number(self, size: int) -> int:
        start, self.at = self.at, self.at + size
        self.numbers.append((start, size))
        return int.from_bytes(self.content[start : self.at], "little")

    def text(self) -> None:
        size = self.number(8)
        self.texts.append((self.at, size))
        self.at += size

    def value(self, kind: int) -> None:
        if kind == _TEXT:
            self.text()
        elif kind == _ARRAY:
            inner, count = self.number(4), self.number(8)
            for _ in range(count):
                self.value(inner)
        else:
            self.number(_SIZES[kind])

    def header(self) -> None:
        self.number(4)
        tensors, pairs = self.number(8), self.number(8)
        for _ in range(pairs):
            self.text()
            self.value(self.number(4))
        for _ in range(tensors):
            self.text()
            for _ in range(self.number(4)):
                self.number(8)
            self.number(4)
            self.number(8)


def gguf_damaged(rng: random.Random, content: bytes) -> bytes:
    """A number or a text of the header, or any byte of it, or of the file."""
    reader = _Reader(content)
    reader.header()
    tokens = [field for field in reader.texts if content[field[0] :].startswith(b"token")]
    data = bytearray(content)
    kind = rng.randrange(10)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if kind <= 5:
            # Those of tokens are the most, and the dullest.
            few = [field for field in reader.numbers if field[1] != 4 or rng.random() < 0.2]
            at, size = rng.choice(few)
            old = int.from_bytes(data[at : at + size], "little")
            odd = rng.choice((*_ODD_64, old + 1, old - 1, old * 2, old // 2)) % (1 << 8 * size)
            data[at : at + size] = odd.to_bytes(size, "little")
        elif kind <= 8:
            at, size = rng.choice(
                [f for f in reader.texts if f not in tokens] if rng.random() < 0.7 else tokens
            )
            new = rng.choice((*_ODD_TEXTS, bytes(data[at : at + size]) + b"x", b"token1"))
            # Lengths of everything behind move with it, as nothing in a header says where things are.
            if len(new) == size or rng.random() < 0.5:
                data[at : at + size] = new[:size].ljust(size, b"x")
            else:
                return bytes(data[: at - 8] + struct.pack("<Q", len(new)) + new + data[at + size :])
        else:
            return bytes_damaged(rng, content[: reader.at]) + content[reader.at :]
    return bytes(data) if rng.random() < 0.9 else bytes_damaged(rng, content)


def sentencepiece_damaged(rng: random.Random, content: bytes) -> bytes:
    """A tokenizer.model: fields of its protobuf are others, or bytes are."""
    if rng.random() < 0.4:
        return bytes_damaged(rng, content)
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # generated
    proto.ParseFromString(content)
    for _ in range(rng.choice((1, 1, 2))):
        _edit_pieces(rng, proto)
    return bytes(proto.SerializeToString())


def _edit_pieces(rng: random.Random, proto: Any) -> None:
    piece, other = rng.choice(proto.pieces), rng.choice(proto.pieces)
    rng.choice(
        (
            lambda: setattr(piece, "piece", other.piece),
            lambda: setattr(piece, "piece", rng.choice(("", "\u2581" * 5000, "a\0", "<s>", " "))),
            lambda: setattr(piece, "type", rng.choice((1, 2, 3, 4, 5, 6))),
            lambda: setattr(piece, "score", rng.choice((0.0, -1e38, float("nan"), float("inf")))),
            lambda: setattr(
                proto.trainer_spec,
                rng.choice(("bos_id", "eos_id", "unk_id", "pad_id")),
                rng.choice((-1, -5, 0, 1, 3, 419, 420, 1 << 30)),
            ),
            lambda: setattr(proto.trainer_spec, "model_type", rng.choice((1, 2, 3, 4))),
            lambda: proto.pieces.pop(rng.randrange(len(proto.pieces))),
            lambda: proto.pieces.add(piece=other.piece, score=1.0),
            lambda: setattr(proto.normalizer_spec, "name", "nmt_nfkc"),
            lambda: setattr(proto.normalizer_spec, "precompiled_charsmap", rng.randbytes(40)),
        )
    )()


_OPERATORS = (
    *(
        "Identity",
        "Loop",
        "If",
        "Scan",
        "Gather",
        "Reshape",
        "Expand",
        "Conv",
        "Gemm",
        "MatMul",
        "Split",
        "Where",
    ),
    *(
        "Slice",
        "Squeeze",
        "Unsqueeze",
        "ReduceMean",
        "Softmax",
        "Concat",
        "Transpose",
        "Pow",
        "Div",
        "QuantizeLinear",
    ),
    *(
        "DequantizeLinear",
        "LayerNormalization",
        "Cast",
        "Constant",
        "Shape",
        "Flatten",
        "Tile",
        "Range",
        "Upsample",
    ),
)
_SIZES_OF_GRAPHS = (
    0,
    1,
    2,
    3,
    13,
    15,
    28,
    29,
    64,
    -1,
    -2,
    1 << 20,
    1 << 31,
    1 << 40,
    (1 << 63) - 1,
    -(1 << 63),
)


def onnx_damaged(rng: random.Random, content: bytes) -> bytes:
    """Fields of a graph, or bytes of the file."""
    if rng.random() < 0.3:
        return bytes_damaged(rng, content)
    model = onnx.load_from_string(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        try:
            rng.choice(_EDITS)(rng, model)
        except IndexError:  # there is no such field any more
            continue
    return bytes(model.SerializeToString())


def _edit_node(rng: random.Random, model: Any) -> None:
    node = rng.choice(model.graph.node)
    field = rng.choice(("op_type", "domain", "input", "output", "name"))
    if field == "op_type":
        node.op_type = rng.choice(_OPERATORS)
    elif field in ("input", "output"):
        names = getattr(node, field)
        if rng.random() < 0.3:
            names.append(rng.choice(names))
        else:
            names[rng.randrange(len(names))] = rng.choice(
                ("", "pixels", "nowhere", "embeddings", "kernel", "shape")
            )
    else:
        setattr(node, field, rng.choice(("", "ai.onnx", "com.microsoft", "ai.onnx.ml", "x" * 1000)))


def _edit_attribute(rng: random.Random, model: Any) -> None:
    attribute = rng.choice(rng.choice(model.graph.node).attribute)
    kind = rng.randrange(4)
    if kind == 0:
        attribute.name = rng.choice(("", "strides", "pads", "dilations", "group", "perm", "auto_pad", "axis"))
    elif kind == 1 and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_SIZES_OF_GRAPHS)
    elif kind == 2:
        attribute.ints.extend([rng.choice(_SIZES_OF_GRAPHS)] * rng.choice((1, 10)))
    else:
        attribute.type = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 11))


def _edit_weight(rng: random.Random, model: Any) -> None:
    weight = rng.choice(model.graph.initializer)
    kind = rng.randrange(6)
    if kind == 0:
        weight.dims[rng.randrange(len(weight.dims))] = rng.choice(_SIZES_OF_GRAPHS)
    elif kind == 1:
        weight.data_type = rng.randrange(24)
    elif kind == 2:
        weight.raw_data = bytes_damaged(rng, weight.raw_data)
    elif kind == 3:
        weight.name = rng.choice(("", "pixels", "kernel", "other"))
    elif kind == 4:
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (
            ("location", rng.choice(("/etc/passwd", "../manifest.json", "x"))),
            ("length", "9"),
        ):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
    else:
        model.graph.initializer.append(weight)


def _edit_shape(rng: random.Random, model: Any) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    kind = rng.randrange(4)
    if kind == 0:
        value.name = rng.choice(("", "pixels", "embeddings", "kernel"))
    elif kind == 1:
        value.type.tensor_type.elem_type = rng.randrange(24)
    else:
        sizes = value.type.tensor_type.shape.dim
        size = sizes[rng.randrange(len(sizes))]
        if kind == 2:
            size.dim_value = rng.choice(_SIZES_OF_GRAPHS)
        else:
            size.dim_param = rng.choice(("batch", "", "n" * 1000))


def _edit_graph(rng: random.Random, model: Any) -> None:
    graph = model.graph
    kind = rng.randrange(6)
    if kind == 0:
        rng.choice(model.opset_import).version = rng.choice((-1, 0, 1, 6, 12, 17, 25, 1000, 1 << 40))
    elif kind == 1:
        model.ir_version = rng.choice((-1, 0, 2, 3, 12, 100, 1 << 40))
    elif kind == 2:
        del graph.node[rng.randrange(len(graph.node))]
    elif kind == 3:
        graph.node.append(rng.choice(graph.node))
    elif kind == 4:
        graph.output.append(rng.choice(graph.input))
    else:
        nodes = list(graph.node)
        rng.shuffle(nodes)
        del graph.node[:]
        graph.node.extend(nodes)


_EDITS: tuple[Callable[[random.Random, Any], None], ...] = (
    *(_edit_node, _edit_attribute, _edit_weight, _edit_shape, _edit_graph),
)
