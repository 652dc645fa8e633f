"""Float16 is judged by arithmetic that rounds, where ONNX Runtime and torch hide an overflow."""

import copy

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tinyllava_edge.errors import ExportError
from tinyllava_edge.export.parity import Figures, VisionTrial, check_float16
from tinyllava_edge.export.precision import evaluate_rounded, measure_ranges, opened_graph, to_float16
from tinyllava_edge.model.vlm import TinyLlava

PIXELS = (2 * torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)) - 1).numpy()


def embeddings(model: TinyLlava) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        return model.encode(torch.from_numpy(PIXELS)).numpy()


def trial_of(model: TinyLlava) -> VisionTrial:
    return VisionTrial(pixels=PIXELS, embeddings=embeddings(model))


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, npt.NDArray[np.float32]]) -> onnx.ModelProto:
    """A graph from `pixels` [1, 3, 2, 2] to `embeddings` of the same shape."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 2, 2])
        for name in ("pixels", "embeddings")
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "vision", ends[:1], ends[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def test_every_value_and_weight_is_rounded_once_per_operation() -> None:
    """Expected: numpy's own float16, which rounds each elementwise operation to nearest."""
    weight = np.array([1.0001, 3.1415926, 0.33333], dtype=np.float32)[:, None, None]
    nodes = [
        helper.make_node("Mul", ["pixels", "weight"], ["product"], "mul"),
        helper.make_node("Add", ["product", "pixels"], ["sum"], "add"),
        helper.make_node("Mul", ["sum", "sum"], ["embeddings"], "square"),
    ]
    pixels = np.random.default_rng(0).standard_normal((1, 3, 2, 2)).astype(np.float32)
    half, half_weight = pixels.astype(np.float16), weight.astype(np.float16)
    total = half * half_weight + half
    actual = evaluate_rounded(graph_of(nodes, {"weight": weight}), pixels)
    np.testing.assert_array_equal(actual, (total * total).astype(np.float32))


def test_the_largest_magnitude_of_every_value_is_measured() -> None:
    nodes = [
        helper.make_node("Mul", ["pixels", "weight"], ["product"], "mul"),
        helper.make_node("Tanh", ["product"], ["embeddings"], "tanh"),
    ]
    pixels = np.array([-3, 2, 1, 0] * 3, dtype=np.float32).reshape(1, 3, 2, 2)
    ranges = measure_ranges(graph_of(nodes, {"weight": np.array([[[100.0]]], dtype=np.float32)}), pixels)
    assert [(value.name, value.largest, value.harmless) for value in ranges] == [
        ("mul", 300.0, True),  # an infinity would become 1 in Tanh
        ("tanh", 1.0, False),
    ]
    assert ranges[0].margin == pytest.approx(65504 / 300)


def with_biases(
    model: TinyLlava, graph: onnx.ModelProto, values: dict[str, float]
) -> tuple[TinyLlava, onnx.ModelProto]:
    """Model and graph with all values of some of the first layer's biases set."""
    model, changed = copy.deepcopy(model), onnx.ModelProto()
    changed.CopyFrom(graph)
    initializers = {tensor.name: tensor for tensor in changed.graph.initializer}
    for name, value in values.items():
        bias = model.vision_tower.get_parameter(f"model.encoder.layers.0.{name}.bias")
        with torch.no_grad():
            bias.fill_(value)
        full_name = f"tower.model.encoder.layers.0.{name}.bias"
        initializers[full_name].CopyFrom(numpy_helper.from_array(bias.detach().numpy(), full_name))
    return model, changed


def test_an_overflow_of_attention_scores_is_found_although_torchs_half_hides_it(
    model: TinyLlava, vision_graph: onnx.ModelProto
) -> None:
    biases = {"self_attn.q_proj": 300.0, "self_attn.k_proj": 300.0}
    model, graph = with_biases(model, vision_graph, biases)
    half = copy.deepcopy(model.vision_tower).half()
    with torch.no_grad():
        assert torch.isfinite(half(torch.from_numpy(PIXELS).half())).all()
    with opened_graph(to_float16(graph)) as session:  # so does ONNX Runtime's CPU provider
        assert np.isfinite(session.run(None, {"pixels": PIXELS})[0]).all()
    assert not np.isfinite(evaluate_rounded(graph, PIXELS)).all()
    where = r"tower\.model\.encoder\.layers\.0\.self_attn/.*65504.*margin 0\.\d+"
    with pytest.raises(ExportError, match=where):
        check_float16(graph, trial_of(model))


def test_an_overflow_inside_gelu_is_harmless(model: TinyLlava, vision_graph: onnx.ModelProto) -> None:
    """X ** 3 passes 65504 from x = 40 on; tanh makes 1 of it either way."""
    model, graph = with_biases(model, vision_graph, {"mlp.fc1": 60.0})
    assert max(value.largest for value in measure_ranges(graph, PIXELS)) > 65504
    report = check_float16(graph, trial_of(model))
    assert report["margin"] > 1
    assert report["rounded"]["snr_db"] > 50


def test_a_weight_too_large_for_float16_is_named(vision_graph: onnx.ModelProto) -> None:
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(vision_graph)
    (bias,) = [tensor for tensor in spoilt.graph.initializer if tensor.name == "connector.0.bias"]
    bias.CopyFrom(numpy_helper.from_array(np.full(64, 1e5, dtype=np.float32), "connector.0.bias"))
    with pytest.raises(ExportError, match=r"connector\.0\.bias.* 100000"):
        to_float16(spoilt)


def test_a_tiny_model_passes_with_its_margin(vision_graph: onnx.ModelProto, model: TinyLlava) -> None:
    report = check_float16(vision_graph, trial_of(model))
    assert report["rounded"]["snr_db"] > 50
    assert report["margin"] > 100
    assert Figures.of(embeddings(model), evaluate_rounded(vision_graph, PIXELS)).nmse > 1e-9  # it did round
