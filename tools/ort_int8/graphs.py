"""Matrix products as ONNX graphs, one kind of arithmetic each.

Source: docs/sources/measuring.md#integers-in-onnx-runtime.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from tinyllava_edge.model.weight_grids import int8_steps
from tinyllava_edge.runtimes.ort import PROVIDERS, session_options

Floats = npt.NDArray[np.float32]
Products = Mapping[str, Mapping[str, Floats]]  # input -> output -> weight [columns out, columns in]
KINDS = {
    "float32": "float32",
    "tensor": "int8, a scale for the whole tensor (MatMulInteger)",
    "rows": "int8, a scale for each row",
    "blocks8": "8-bit weights, int8 rows in blocks of 32 (MatMulNBits)",
    "blocks4": "4-bit weights, int8 rows in blocks of 32 (MatMulNBits)",
}
BLOCK = 32
_INT8_ROWS = 4  # MatMulNBits' accuracy_level
_ZERO = np.uint8(128)  # MatMulInteger is fast with unsigned rows and signed weights
_OPSET, _IR_VERSION = 21, 10


def products_graph(kind: str, products: Products) -> bytes:
    """A model that multiplies each input [rows, columns in] with all its weights, rounded as `kind` has it.

    Args:
        kind: of `KINDS`.
        products: all weights of one input have the same number of columns.
    """
    if kind in ("tensor", "rows"):
        proto = _int8(products, by_rows=kind == "rows")
    else:
        proto = _float32(products)
        if kind.startswith("blocks"):
            proto = _by_blocks(proto, bits=int(kind[-1]))
    serialized: bytes = proto.SerializeToString()
    return serialized


def open_products(kind: str, products: Products, threads: int) -> Any:
    """The graph in a session with the options of our runtime."""
    return onnxruntime.InferenceSession(products_graph(kind, products), session_options(threads), PROVIDERS)


def _float32(products: Products) -> Any:
    nodes, weights = [], []
    for source, found in products.items():
        for name, weight in found.items():
            weights.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), f"{name}.weight"))
            nodes.append(helper.make_node("MatMul", [source, f"{name}.weight"], [name], name))
    return _model(products, nodes, weights)


def _by_blocks(proto: Any, bits: int) -> Any:
    """Weights of 4 bits have a zero of their own in each block, those of 8 are around 0."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)
    quantizer = MatMulNBitsQuantizer(
        proto, bits=bits, block_size=BLOCK, is_symmetric=bits == 8, accuracy_level=_INT8_ROWS
    )
    quantizer.process()
    return quantizer.model.model


def _int8(products: Products, *, by_rows: bool) -> Any:
    """Rows rounded to unsigned steps, weights to signed ones with a scale for each column that they write.

    One scale for the tensor is what `quantize_dynamic` makes, as ONNX Runtime fuses it. A scale for each row
    is the largest of it over 127: the product has it as 1, and is multiplied by the rows' own.
    """
    values = {"axis": np.array([1]), "steps": np.float32(1 / 127), "tiny": np.float32(1e-30)}
    values |= {"zero": _ZERO, "one": np.float32(1)}
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in values.items() if by_rows]
    nodes = []
    for source, found in products.items():
        rounded, step, zero = (f"{source}.{part}" for part in ("rounded", "step", "zero"))
        if by_rows:
            nodes += _round_rows(source)
        else:
            nodes.append(helper.make_node("DynamicQuantizeLinear", [source], [rounded, step, zero]))
        for name, weight in found.items():
            integers, scale = int8_steps(torch.from_numpy(weight))
            weights.append(numpy_helper.from_array(integers.T.to(torch.int8).numpy(), f"{name}.weight"))
            weights.append(numpy_helper.from_array(scale[:, 0].numpy(), f"{name}.scale"))
            inputs = [rounded, f"{name}.weight", "one" if by_rows else step, f"{name}.scale"]
            inputs.append("zero" if by_rows else zero)
            output = f"{name}.steps" if by_rows else name
            nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [output], domain="com.microsoft"))
            if by_rows:
                nodes.append(helper.make_node("Mul", [output, step], [name]))
    return _model(products, nodes, weights)


def _round_rows(source: str) -> list[Any]:
    """`.rounded` [rows, columns], and each row's `.step` [rows, 1]: ONNX has no operator for it."""
    steps: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("Abs", [source], "abs", {}),
        ("ReduceMax", [f"{source}.abs", "axis"], "largest", {"keepdims": 1}),
        ("Mul", [f"{source}.largest", "steps"], "step_or_zero", {}),
        ("Max", [f"{source}.step_or_zero", "tiny"], "step", {}),
        ("Squeeze", [f"{source}.step", "axis"], "flat", {}),
        ("Shape", [f"{source}.flat"], "shape", {}),
        ("Expand", ["zero", f"{source}.shape"], "zeros", {}),
        ("QuantizeLinear", [source, f"{source}.flat", f"{source}.zeros"], "rounded", {"axis": 0}),
    )
    return [
        helper.make_node(operator, inputs, [f"{source}.{output}"], **attributes)
        for operator, inputs, output, attributes in steps
    ]


def _model(products: Products, nodes: list[Any], weights: list[Any]) -> Any:
    inputs, outputs = [], []
    for source, found in products.items():
        columns = next(iter(found.values())).shape[1]
        inputs.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, ["rows", columns]))
        outputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", len(weight)])
            for name, weight in found.items()
        ]
    return helper.make_model(
        helper.make_graph(nodes, "products", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)],
        ir_version=_IR_VERSION,
    )
