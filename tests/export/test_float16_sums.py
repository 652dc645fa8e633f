"""Sums in float16 cost what numpy's float16 arithmetic costs, one product after the other."""

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinyllava_edge.export import float16_sums
from tinyllava_edge.export.precision import to_float16
from tinyllava_edge.export.rounding import evaluate_rounded
from tinyllava_edge.metrics import snr_db

Floats = npt.NDArray[np.float32]
RANDOM = np.random.default_rng(0)


def float16_graph(node: onnx.NodeProto, weight: Floats, ends: tuple[list[int], list[int]]) -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(("pixels", "embeddings"), ends, strict=True)
    ]
    graph = helper.make_graph(
        [node], "vision", values[:1], values[1:], [numpy_helper.from_array(weight, "weight")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return to_float16(onnx.shape_inference.infer_shapes(model))


def summed_one_by_one(rows: Floats, weight: Floats) -> Floats:
    """[n, k] x [k, m], the sum rounded to float16 after each product."""
    total = np.zeros((len(rows), weight.shape[1]), dtype=np.float16)
    for column, row in zip(rows.T.astype(np.float16), weight.astype(np.float16), strict=True):
        total = (total + column[:, None].astype(np.float32) * row.astype(np.float32)).astype(np.float16)
    return total.astype(np.float32)


def test_a_product_costs_what_summing_one_by_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(float16_sums.STEPS, "MatMul", 1)
    rows = RANDOM.standard_normal((1, 3, 64, 515), dtype=np.float32)  # 515: a last piece of another size
    weight = RANDOM.standard_normal((515, 32), dtype=np.float32)
    node = helper.make_node("MatMul", ["pixels", "weight"], ["embeddings"], "product")
    found = evaluate_rounded(float16_graph(node, weight, ([1, 3, 64, 515], [1, 3, 64, 32])), rows)
    flat = rows.reshape(-1, 515)
    expected = (flat.astype(np.float16) @ weight.astype(np.float16).astype(np.float64)).astype(np.float32)
    once = snr_db(expected, expected.astype(np.float16).astype(np.float32))
    one_by_one = snr_db(expected, summed_one_by_one(flat, weight))
    ours = snr_db(expected, found.reshape(-1, 32))
    assert once > one_by_one + 15
    assert ours == pytest.approx(one_by_one, abs=2)


def test_a_patch_embedding_costs_what_summing_one_by_one_does() -> None:
    pixels = RANDOM.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    kernel = RANDOM.standard_normal((32, 3, 16, 16), dtype=np.float32)
    ends = ["pixels", "weight"], ["embeddings"], "patches"
    node = helper.make_node("Conv", *ends, kernel_shape=[16, 16], strides=[16, 16])
    found = evaluate_rounded(float16_graph(node, kernel, ([1, 3, 64, 64], [1, 32, 4, 4])), pixels)
    patches = pixels.reshape(3, 4, 16, 4, 16).transpose(1, 3, 0, 2, 4).reshape(16, -1)
    weight = kernel.reshape(32, -1).T
    expected = (patches.astype(np.float16) @ weight.astype(np.float16).astype(np.float64)).astype(np.float32)
    one_by_one = snr_db(expected, summed_one_by_one(patches, weight))
    ours = snr_db(expected, found[0].reshape(32, 16).T)
    assert one_by_one < 60
    assert ours == pytest.approx(one_by_one, abs=2)
