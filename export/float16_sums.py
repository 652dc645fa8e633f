"""Products whose sums are kept in float16, as nodes of a float32 graph.

A GPU may add up so where a graph is float16, and ONNX Runtime does on ARM processors with float16 vectors:
there a patch embedding's sum is rounded once a product. Measured under emulation, nano: 51.3 dB, which is
78 dB where every product is summed in float32 (benchmarks/results/aarch64.md). Rounding that often by single
nodes would take hours, so a product is cut into `PIECES`, and one rounding stands for all of a piece: its
error is multiplied by the square root of their number.
"""

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

PIECES = 16
# Products that are summed before the sum is rounded: a tensor core takes 16 in one step, from Ampere on;
# ARM's vectors one, and only for convolutions (ONNX Runtime 1.23). With 4 a random SigLIP-so400m is at
# 40.1 dB, with 16 at 45.0, with its convolution alone at 49.8.
STEPS = {"MatMul": 16, "Conv": 1}


def in_float16_sums(node: NodeProto, dims: dict[str, list[int]]) -> list[NodeProto]:
    """A product as partial products and the rounded sum of them; any other node as it is.

    Args:
        node: of a float32 graph.
        dims: sizes of weights and inner values, 0 where one is not known; such a product stays whole.
    """
    pieces = {"MatMul": _split_matmul, "Conv": _split_convolution}
    if node.op_type not in pieces:
        return [node]
    found = pieces[node.op_type](node, dims)
    return _summed(*found, STEPS[node.op_type], node.output[0]) if found else [node]


def _split_matmul(
    node: NodeProto, dims: dict[str, list[int]]
) -> tuple[list[NodeProto], list[str], int] | None:
    """Nodes, names of the partial products, and products in one."""
    width = dims.get(node.input[0], [0])[-1]
    if not width:
        return None
    size = -(-width // PIECES)
    sizes = [min(size, width - start) for start in range(0, width, size)]
    out = node.output[0]
    nodes = [_constant(np.array(sizes, dtype=np.int64), f"{out}_sizes")]
    for side, axis in ((0, -1), (1, -2)):
        parts = [f"{out}_{side}_{number}" for number in range(len(sizes))]
        nodes.append(helper.make_node("Split", [node.input[side], f"{out}_sizes"], parts, axis=axis))
    products = [f"{out}_product_{number}" for number in range(len(sizes))]
    for number, product in enumerate(products):
        nodes.append(helper.make_node("MatMul", [f"{out}_{side}_{number}" for side in (0, 1)], [product]))
    return nodes, products, size


def _split_convolution(
    node: NodeProto, dims: dict[str, list[int]]
) -> tuple[list[NodeProto], list[str], int] | None:
    """As `_split_matmul`, a row of the kernel each; None with padding, which a patch embedding lacks."""
    about = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    kernel, image = dims.get(node.input[1], []), dims.get(node.input[0], [])
    if len(kernel) != 4 or len(image) != 4 or not image[2] or any(about.get("pads", [])):
        return None
    out, rows = node.output[0], kernel[2]
    weights = [f"{out}_weight_{row}" for row in range(rows)]
    nodes = [helper.make_node("Split", [node.input[1]], weights, axis=2, num_outputs=rows)]
    nodes.append(_constant(np.array([2], dtype=np.int64), f"{out}_axis"))
    products = [f"{out}_product_{row}" for row in range(rows)]
    for row, product in enumerate(products):
        for name, value in (("start", row), ("end", image[2] - rows + 1 + row)):
            nodes.append(_constant(np.array([value], dtype=np.int64), f"{product}_{name}"))
        ends = [f"{product}_start", f"{product}_end", f"{out}_axis"]
        nodes.append(helper.make_node("Slice", [node.input[0], *ends], [f"{product}_rows"]))
        bias = list(node.input[2:]) if row == 0 else []
        kept = {name: value for name, value in about.items() if name in ("strides", "group")}
        inputs = [f"{product}_rows", weights[row], *bias]
        nodes.append(helper.make_node("Conv", inputs, [product], kernel_shape=[1, kernel[3]], **kept))
    return nodes, products, kernel[1] * kernel[3]


def _summed(nodes: list[NodeProto], products: list[str], size: int, step: int, out: str) -> list[NodeProto]:
    """The products added up, the sum rounded behind each with the error of all roundings in it."""
    factor = np.sqrt(max(size / step, 1.0))
    nodes = [*nodes, _constant(np.array(factor, dtype=np.float32), f"{out}_factor")]
    total = ""
    for number, product in enumerate(products):
        name = f"{out}_sum_{number}"
        if total:
            nodes.append(helper.make_node("Add", [total, product], [name]))
        else:
            name = product
        last = number == len(products) - 1
        nodes.append(helper.make_node("Cast", [name], [f"{name}_low"], to=TensorProto.FLOAT16))
        nodes.append(helper.make_node("Cast", [f"{name}_low"], [f"{name}_wide"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Sub", [f"{name}_wide", name], [f"{name}_error"]))
        nodes.append(helper.make_node("Mul", [f"{name}_error", f"{out}_factor"], [f"{name}_errors"]))
        total = out if last else f"{name}_rounded"
        nodes.append(helper.make_node("Add", [name, f"{name}_errors"], [total]))
    return nodes


def _constant(value: np.ndarray, name: str) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
