"""Vision tower and connector as one ONNX graph, judged by torch through ONNX Runtime."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import ExportError
from tinyllava_edge.export import onnx_file
from tinyllava_edge.export.onnx_file import check_domains, open_session, opened_graph, write_vision_graph
from tinyllava_edge.export.precision import to_float16
from tinyllava_edge.export.vision_onnx import build_vision_graph
from tinyllava_edge.model.vlm import TinyLlava, load_model

# Operators of ONNX that TensorRT 10.1's parser does not list, or that break its fused attention
# (docs/sources/tensorrt.md#one-graph-for-all-versions).
NOT_IN_OPSET_18 = {"Gelu", "Attention", "RotaryEmbedding", "RMSNormalization", "GroupNormalization"}


def copy_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    return copied


def random_pixels(model: TinyLlava, batch: int) -> torch.Tensor:
    size = model.config.vision.image_size
    return 2 * torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(batch)) - 1


@st.composite
def vision_sizes(draw: st.DrawFn) -> dict[str, object]:
    layers = draw(st.integers(1, 3))
    connector = draw(st.sampled_from(["identity", "linear", "mlp1x_gelu", "mlp2x_gelu", "mlp3x_gelu"]))
    hidden = 16 * draw(st.integers(2, 5))
    return {
        "hidden": hidden,
        "vision_layers": layers,
        "vision_hidden": hidden if connector == "identity" else 8 * draw(st.integers(4, 12)),
        "vision_heads": draw(st.sampled_from([1, 2, 4, 8])),
        "vision_intermediate": draw(st.integers(40, 100)),
        "image_size": draw(st.sampled_from([42, 56, 60])),  # 60: a rest of 4 pixels is not used
        "feature_layer": draw(st.sampled_from([-1, -2, 0, layers])),
        "select_strategy": draw(st.sampled_from(["patch", "cls_patch"])),
        "connector": connector,
        "seed": draw(st.integers(0, 99)),
    }


@settings(max_examples=3)
@example({"connector": "identity", "vision_hidden": 64, "feature_layer": 0})
@given(vision_sizes())
def test_any_tower_and_connector_give_torchs_embeddings(sizes: dict[str, object]) -> None:
    with TemporaryDirectory() as folder:
        model = load_model(Checkpoint(write_tiny_checkpoint(Path(folder) / "checkpoint", **sizes)))  # type: ignore[arg-type]
    graph = build_vision_graph(model, model.config.vision.image_size)
    for proto, gate in ((graph, 1e-11), (to_float16(graph), 1e-4)):  # measured 3e-13, 1e-6
        with opened_graph(proto) as session:
            for batch in (1, 3):
                pixels = random_pixels(model, batch)
                (actual,) = session.run(["embeddings"], {"pixels": pixels.numpy()})
                expected = model.encode(pixels).detach().numpy()
                assert actual.shape == (batch, model.config.vision.num_tokens, sizes.get("hidden", 64))
                assert np.mean((actual - expected) ** 2) / np.var(expected) <= gate


def test_the_towers_output_can_be_tapped(model: TinyLlava, vision_graph: onnx.ModelProto) -> None:
    tapped = copy_of(vision_graph)
    (value,) = [value for value in tapped.graph.value_info if value.name == "vision_tower_output"]
    tapped.graph.output.append(value)
    pixels = random_pixels(model, 2)
    with opened_graph(tapped) as session:
        (actual,) = session.run(["vision_tower_output"], {"pixels": pixels.numpy()})
    np.testing.assert_allclose(actual, model.vision_tower(pixels).detach().numpy(), atol=2e-5)


def test_the_graph_holds_only_the_layers_that_the_feature_layer_needs(vision_graph: onnx.ModelProto) -> None:
    """Two of three layers at feature layer -2; no post-norm, no pooling head."""
    kinds = [node.op_type for node in vision_graph.graph.node]
    assert kinds.count("Softmax") == 2
    assert kinds.count("LayerNormalization") == 4
    stored = sum(int(np.prod(tensor.dims)) for tensor in vision_graph.graph.initializer)
    patch = 3 * 14 * 14 * 48 + 48 + 16 * 48
    layer = 4 * (48 * 48 + 48) + 2 * 2 * 48 + 48 * 96 + 96 + 96 * 48 + 48
    connector = 48 * 64 + 64 + 64 * 64 + 64
    assert 0 <= stored - (patch + 2 * layer + connector) < 100  # the rest: shapes and scales


def test_input_output_opset_and_operators_are_those_of_the_contract(vision_graph: onnx.ModelProto) -> None:
    (pixels,), (embeddings,) = vision_graph.graph.input, vision_graph.graph.output

    def shape(value: onnx.ValueInfoProto) -> list[object]:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert (pixels.name, shape(pixels)) == ("pixels", ["batch", 3, 56, 56])
    assert (embeddings.name, shape(embeddings)) == ("embeddings", ["batch", 15, 64])
    assert [(opset.domain, opset.version) for opset in vision_graph.opset_import] == [("", 18)]
    assert not {node.op_type for node in vision_graph.graph.node} & NOT_IN_OPSET_18


def test_onnx_runtime_makes_one_operator_of_each_gelu(vision_graph: onnx.ModelProto, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # the file is for this machine
    onnxruntime.InferenceSession(vision_graph.SerializeToString(), options, ["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("FastGelu") == 2
    assert kinds.count("Gelu") + kinds.count("BiasGelu") == 1, "the connector's, with its bias or without"
    assert not {"Tanh", "Erf"} & {*kinds}


def test_the_file_says_nothing_about_the_machine_it_was_made_on(vision_graph: onnx.ModelProto) -> None:
    text = vision_graph.SerializeToString()
    for word in (str(Path.cwd()), sys.prefix, "site-packages", ".py", 'File "', "/tmp"):
        assert word.encode() not in text
    assert vision_graph.graph.node[0].name == "tower.model.embeddings.patch_embedding/convolution"


def test_the_same_model_gives_the_same_bytes(model: TinyLlava, vision_graph: onnx.ModelProto) -> None:
    assert (
        build_vision_graph(model, model.config.vision.image_size).SerializeToString()
        == vision_graph.SerializeToString()
    )


def test_float16_has_float32_at_both_ends_and_none_inside(
    vision_graph: onnx.ModelProto, model: TinyLlava, tmp_path: Path
) -> None:
    half = to_float16(vision_graph)
    assert {tensor.data_type for tensor in half.graph.initializer} <= {TensorProto.FLOAT16, TensorProto.INT64}
    kinds = {value.name: value.type.tensor_type.elem_type for value in half.graph.value_info}
    assert TensorProto.FLOAT not in kinds.values()
    assert kinds["vision_tower_output"] == TensorProto.FLOAT16
    (path,) = write_vision_graph(tmp_path / "fp16.onnx", half)
    session = open_session(path)
    assert [value.type for value in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2
    pixels = random_pixels(model, 2)
    (actual,) = session.run(None, {"pixels": pixels.numpy()})
    expected = model.encode(pixels).detach().numpy()
    assert 10 * np.log10((expected**2).sum() / ((actual - expected) ** 2).sum()) > 50


def test_large_weights_lie_beside_the_graph(
    vision_graph: onnx.ModelProto, model: TinyLlava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = vision_graph.SerializeToString()
    monkeypatch.setattr(onnx_file, "INLINE_LIMIT", 1000)
    files = write_vision_graph(tmp_path / "fp32.onnx", vision_graph)
    assert [path.name for path in files] == ["fp32.onnx", "fp32.onnx.data"]
    assert len({path.stat().st_mode for path in files}) == 1  # onnx writes the second for its owner only
    assert vision_graph.SerializeToString() == before
    pixels = random_pixels(model, 1)
    (actual,) = open_session(files[0]).run(None, {"pixels": pixels.numpy()})
    np.testing.assert_allclose(actual, model.encode(pixels).detach().numpy(), atol=2e-5)


def test_operators_from_elsewhere_are_refused(vision_graph: onnx.ModelProto) -> None:
    spoilt = copy_of(vision_graph)
    spoilt.graph.node[3].domain = "com.microsoft"
    with pytest.raises(ExportError, match="needs operator com"):
        check_domains(spoilt)
