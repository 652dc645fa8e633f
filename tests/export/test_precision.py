"""Float16 is judged by arithmetic that rounds, where ONNX Runtime and torch hide an overflow."""

import copy
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tinyllava_edge.bounds import first_fault
from tinyllava_edge.errors import ExportError
from tinyllava_edge.export import vision_onnx
from tinyllava_edge.export.onnx_file import element_types, opened_graph, write_vision_graph
from tinyllava_edge.export.parity import VisionTrial, check_rounded, vision_trial
from tinyllava_edge.export.precision import Island, attention_nodes, find_islands, to_bfloat16, to_float16
from tinyllava_edge.export.rounding import evaluate_rounded, measure_ranges
from tinyllava_edge.metrics import feature_figures
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.precisions import PRECISIONS

PIXELS = (2 * torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)) - 1).numpy()


def embeddings(model: TinyLlava) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        return model.encode(torch.from_numpy(PIXELS)).numpy()


def trial_of(model: TinyLlava) -> VisionTrial:
    return vision_trial(model, PIXELS)


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
    """Expected: numpy's float16 and ml_dtypes' bfloat16, which round each operation to nearest."""
    weight = np.array([1.0001, 3.1415926, 0.33333], dtype=np.float32)[:, None, None]
    nodes = [
        helper.make_node("Mul", ["pixels", "weight"], ["product"], "mul"),
        helper.make_node("Add", ["product", "pixels"], ["sum"], "add"),
        helper.make_node("Mul", ["sum", "sum"], ["embeddings"], "square"),
    ]
    pixels = np.random.default_rng(0).standard_normal((1, 3, 2, 2)).astype(np.float32)
    for kind, convert in ((np.float16, to_float16), (ml_dtypes.bfloat16, to_bfloat16)):
        low, low_weight = pixels.astype(kind), weight.astype(kind)
        total = low * low_weight + low
        actual = evaluate_rounded(convert(graph_of(nodes, {"weight": weight})), pixels)
        np.testing.assert_array_equal(actual, (total * total).astype(np.float32))


def test_the_largest_magnitude_of_every_value_is_measured() -> None:
    nodes = [
        helper.make_node("Mul", ["pixels", "weight"], ["product"], "mul"),
        helper.make_node("Tanh", ["product"], ["embeddings"], "tanh"),
    ]
    pixels = np.array([-3, 2, 1, 0] * 3, dtype=np.float32).reshape(1, 3, 2, 2)
    graph = graph_of(nodes, {"weight": np.array([[[100.0]]], dtype=np.float32)})
    ranges = measure_ranges(graph, pixels)
    assert [(value.name, value.largest, value.harmless) for value in ranges] == [
        ("mul", 300.0, True),  # an infinity would become 1 in Tanh
        ("tanh", 1.0, False),
    ]
    assert ranges[0].margin == pytest.approx(65504 / 300)
    in_float16 = measure_ranges(to_float16(graph), pixels)  # its input, too, is stored in float16
    assert [value.largest for value in in_float16] == [3.0, 300.0, 1.0]


def with_biases(
    model: TinyLlava, graph: onnx.ModelProto, values: dict[str, float]
) -> tuple[TinyLlava, onnx.ModelProto]:
    """Model and graph with all values of some of the first layer's biases set."""
    model, changed = copy.deepcopy(model), copy_of(graph)
    for name, value in values.items():
        bias = model.vision_tower.get_parameter(f"model.encoder.layers.0.{name}.bias")
        with torch.no_grad():
            bias.fill_(value)
        set_weight(changed, f"tower.model.encoder.layers.0.{name}.bias", bias.detach().numpy())
    return model, changed


def copy_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    return copied


def set_weight(proto: onnx.ModelProto, name: str, values: npt.NDArray[np.float32]) -> None:
    (tensor,) = [tensor for tensor in proto.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(values, name))


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
    assert not np.isfinite(evaluate_rounded(to_float16(graph), PIXELS)).all()
    where = r"tower\.model\.encoder\.layers\.0\.self_attn/.*65504.*margin 0\.\d+"
    with pytest.raises(ExportError, match=where):
        check_rounded(to_float16(graph), "fp16", trial_of(model))


def test_an_overflow_inside_gelu_is_harmless(model: TinyLlava, vision_graph: onnx.ModelProto) -> None:
    """X ** 3 passes 65504 from x = 40 on; tanh makes 1 of it either way."""
    model, graph = with_biases(model, vision_graph, {"mlp.fc1": 60.0})
    assert max(value.largest for value in measure_ranges(graph, PIXELS)) > 65504
    report = check_rounded(to_float16(graph), "fp16", trial_of(model))
    assert report["margin"] > 1
    assert report["rounded"]["snr_db"] > 45


def islands_of(graph: onnx.ModelProto) -> tuple[Island, ...]:
    return find_islands(graph, measure_ranges(graph, PIXELS))


def casts(graph: onnx.ModelProto) -> set[str]:
    return {node.name for node in graph.graph.node if node.op_type == "Cast"}


def test_overflowing_attention_scores_become_an_island_and_the_graph_is_finite(
    model: TinyLlava, vision_graph: onnx.ModelProto
) -> None:
    biases = {"self_attn.q_proj": 300.0, "self_attn.k_proj": 300.0}
    model, graph = with_biases(model, vision_graph, biases)
    (island,) = islands_of(graph)
    kinds = {node.name: node.op_type for node in graph.graph.node}
    assert [kinds[name] for name in island.nodes] == ["MatMul", "Softmax"]
    assert island.in_attention
    assert island.largest > 65504
    saved = to_float16(graph, [island])
    assert len(casts(saved)) == 5  # query and key go in, probabilities come out; and the two ends
    rounded = evaluate_rounded(saved, PIXELS)
    assert np.isfinite(rounded).all()
    # Not the 40 dB of the gate: query and key of 300 have steps of 0.25 in float16, which no island mends,
    # and sums of products with them have as large ones.
    assert feature_figures(embeddings(model), rounded)["snr_db"] > 15


def test_an_outlier_of_the_residual_stream_becomes_an_island_that_leaves_attention_alone(
    model: TinyLlava, vision_graph: onnx.ModelProto
) -> None:
    """A huge bias in one channel, as massive activations are: every later sum and norm reads it."""
    model, graph = copy.deepcopy(model), copy_of(vision_graph)
    name = "model.encoder.layers.0.mlp.fc2.bias"
    with torch.no_grad():
        model.vision_tower.get_parameter(name)[5] = 7e4
    bias = model.vision_tower.get_parameter(name).detach().numpy()
    set_weight(graph, f"tower.{name}", bias)
    with pytest.raises(ExportError, match=r"fc2\.bias.* 70000"):
        to_float16(graph)
    islands = islands_of(graph)
    assert not any(island.in_attention for island in islands)
    kinds = {node.name: node.op_type for node in graph.graph.node}
    found = {kinds[name] for island in islands for name in island.nodes}
    assert {"Add", "LayerNormalization", "Slice", "MatMul"} <= found  # the MatMul: the connector's first
    assert "Softmax" not in found
    saved = to_float16(graph, islands)
    types = element_types(saved.graph)
    assert types["vision_tower_output"] == TensorProto.FLOAT
    attention = attention_nodes(saved.graph)
    in_attention = {types[node.output[0]] for node in saved.graph.node if node.name in attention}
    assert in_attention == {TensorProto.FLOAT16}
    rounded = evaluate_rounded(saved, PIXELS)
    assert np.isfinite(rounded).all()
    assert first_fault(PRECISIONS["fp16"].gates, feature_figures(embeddings(model), rounded)) == ""


def test_nothing_is_an_island_where_float16_has_the_range(vision_graph: onnx.ModelProto) -> None:
    assert islands_of(vision_graph) == ()
    assert casts(to_float16(vision_graph)) == {"cast/pixels_fp16", "cast/embeddings"}


def test_bfloat16_is_torchs_own_export_but_for_the_convolution(
    vision_graph: onnx.ModelProto, model: TinyLlava, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Torch traces the model in bfloat16: the same operators in the same order, each in the same type."""
    own = to_bfloat16(vision_graph)
    write_vision_graph(tmp_path / "bf16.onnx", own)  # onnx's checker takes it
    copied = copy.deepcopy(model)
    graph = vision_onnx.VisionGraph(copied.vision_tower, copied.connector).bfloat16().eval()
    with torch.no_grad(), vision_onnx._quiet_exporter():
        traced = vision_onnx._traced(graph, torch.zeros(2, 3, 56, 56, dtype=torch.bfloat16))
    theirs, ours = traced.graph, own.graph
    kinds, their_kinds = element_types(ours), element_types(theirs)
    nodes = [node for node in ours.node if node.op_type != "Cast"]
    assert [node.op_type for node in nodes] == [node.op_type for node in theirs.node]
    for node, other in zip(nodes, theirs.node, strict=True):
        if node.op_type != "Conv":
            assert kinds.get(node.output[0]) in (their_kinds[other.output[0]], TensorProto.FLOAT), node.name
    assert kinds["convolution"] == TensorProto.FLOAT16
    assert len(casts(own)) == 3
    stored = {tensor.name: tensor for tensor in ours.initializer}
    for tensor in theirs.initializer:
        if tensor.name in stored and "patch_embedding" not in tensor.name:
            assert stored[tensor.name].raw_data == tensor.raw_data, tensor.name


def test_bfloat16_has_the_range_where_float16_overflows(
    model: TinyLlava, vision_graph: onnx.ModelProto
) -> None:
    biases = {"self_attn.q_proj": 300.0, "self_attn.k_proj": 300.0}
    _, graph = with_biases(model, vision_graph, biases)
    assert np.isfinite(evaluate_rounded(to_bfloat16(graph), PIXELS)).all()
    report = check_rounded(to_bfloat16(vision_graph), "bf16", trial_of(model))
    assert 30 < report["rounded"]["snr_db"] < 50  # 8 bits, where float16 has 11


def test_a_tiny_model_passes_with_its_margin(vision_graph: onnx.ModelProto, model: TinyLlava) -> None:
    report = check_rounded(to_float16(vision_graph), "fp16", trial_of(model))
    assert report["rounded"]["snr_db"] > 45
    assert report["margin"] > 100
    rounded = evaluate_rounded(to_float16(vision_graph), PIXELS)
    assert feature_figures(embeddings(model), rounded)["nmse"] > 1e-9  # it did round
