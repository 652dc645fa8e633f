"""An ONNX graph of one product of two square matrices, written without a library: a device has none.

Field numbers are those of onnx.proto (docs/sources/measuring.md#a-graph-of-one-product).
"""

import numpy as np

_IR_VERSION, _OPSET = 8, 17
_ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}
_VARINT, _BYTES = 0, 2


def matmul_graph(kind: str, size: int) -> bytes:
    """A model with an input `left` [size, size], a weight `right` likewise, and their product.

    Args:
        kind: "fp32", or "int8": uint8 times int8 into int32, as quantized graphs are computed.
        size: of both.
    """
    left, right, product, operator = {
        "fp32": ("float32", "float32", "float32", "MatMul"),
        "int8": ("uint8", "int8", "int32", "MatMulInteger"),
    }[kind]
    weight = np.ones((size, size), right)
    node = _text(1, "left") + _text(1, "right") + _text(2, "product") + _text(4, operator)
    tensor = _number(1, size) * 2 + _number(2, _ELEMENT_TYPES[right]) + _text(8, "right")
    graph = (
        _message(1, node)
        + _text(2, "product")
        + _message(5, tensor + _message(9, weight.tobytes()))
        + _message(11, _value("left", left, size))
        + _message(12, _value("product", product, size))
    )
    return _number(1, _IR_VERSION) + _message(7, graph) + _message(8, _number(2, _OPSET))


def _value(name: str, element: str, size: int) -> bytes:
    shape = _message(1, _number(1, size)) * 2
    return _text(1, name) + _message(2, _message(1, _number(1, _ELEMENT_TYPES[element]) + _message(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
