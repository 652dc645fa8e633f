"""Int8 linear layers: the numbers are those of ONNX Runtime's own quantizer, and attention is left alone."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tests.export.test_precision import PIXELS, embeddings, trial_of
from tinyllava_edge.errors import ImageError, UsageError
from tinyllava_edge.export import int8
from tinyllava_edge.export.calibration import calibration_files, calibration_pixels
from tinyllava_edge.export.int8 import (
    CPU,
    INPUT_BARS_DB,
    TENSORRT,
    InputRange,
    Scheme,
    kept_layers,
    linear_layers,
    measure_inputs,
    to_int8,
    with_typed_scales,
)
from tinyllava_edge.export.onnx_file import element_types, open_session, opened_graph, write_vision_graph
from tinyllava_edge.export.parity import check_rounded
from tinyllava_edge.export.precision import attention_nodes, to_float16
from tinyllava_edge.export.rounding import evaluate_rounded
from tinyllava_edge.export.vision_variants import BUILDERS, VisionSource, write_variant
from tinyllava_edge.image import Preprocessing
from tinyllava_edge.metrics import feature_figures
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.precisions import PRECISIONS


class Pictures(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._rest = [{"pixels": picture[None]} for picture in PIXELS]

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        return self._rest.pop() if self._rest else None


def values(proto: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


@pytest.mark.parametrize("scheme", [CPU, TENSORRT], ids=["cpu", "tensorrt"])
def test_scales_zero_points_and_weights_are_those_of_onnx_runtimes_quantizer(
    vision_graph: onnx.ModelProto, tmp_path: Path, scheme: Scheme
) -> None:
    write_vision_graph(tmp_path / "fp32.onnx", vision_graph)
    logging.disable(logging.WARNING)  # it asks for a preprocessing that changes nothing here
    try:
        quantize_static(
            tmp_path / "fp32.onnx",
            tmp_path / "int8.onnx",
            Pictures(),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=[node.name for node in linear_layers(vision_graph.graph)],
            per_channel=True,
            activation_type=QuantType.QInt8 if scheme.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": scheme.symmetric,
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
            },
        )
    finally:
        logging.disable(logging.NOTSET)
    theirs = values(onnx.load(tmp_path / "int8.onnx"))
    ours = to_int8(vision_graph, measure_inputs(vision_graph, PIXELS), scheme)
    own = values(ours)
    layers = linear_layers(vision_graph.graph)
    assert len(layers) == 14  # two layers of six, and the connector's two
    for node in layers:
        activation, weight = node.input
        np.testing.assert_allclose(own[f"{activation}_scale"], theirs[f"{activation}_scale"], rtol=1e-6)
        assert own[f"{activation}_zero"] == theirs[f"{activation}_zero_point"]
        np.testing.assert_allclose(own[f"{weight}_scale"], theirs[f"{weight}_scale"], rtol=1e-6)
        difference = own[f"{weight}_quantized"].astype(int) - theirs[f"{weight}_quantized"].astype(int)
        assert np.abs(difference).max() <= 1  # a tie, rounded by a scale that differs in its last bit
        assert (difference != 0).mean() < 1e-3
    with opened_graph(ours) as session:
        (actual,) = session.run(None, {"pixels": PIXELS})
    (expected,) = open_session(tmp_path / "int8.onnx").run(None, {"pixels": PIXELS})
    assert np.mean((actual - expected) ** 2) < 1e-3 * np.var(expected)


def test_steps_and_noise_are_those_worked_out_by_hand() -> None:
    found = InputRange(lowest=-1.0, highest=4.1, mean_square=1.0)
    scale, zero = CPU.scale_and_zero(found)
    assert float(scale) == pytest.approx(5.1 / 255)
    assert int(zero) == 50
    assert CPU.input_snr_db(found) == pytest.approx(10 * np.log10(12 / 0.02**2), abs=1e-3)
    scale, zero = TENSORRT.scale_and_zero(found)
    assert float(scale) == pytest.approx(4.1 / 127)
    assert int(zero) == 0
    assert TENSORRT.scale_and_zero(InputRange(lowest=0, highest=0, mean_square=0))[0] > 0


def test_attention_and_everything_but_linear_layers_stays_as_it_is(vision_graph: onnx.ModelProto) -> None:
    proto = to_int8(vision_graph, measure_inputs(vision_graph, PIXELS), TENSORRT)
    changed = {name for node in proto.graph.node for name in node.output if name.endswith("_dequantized")}
    for node in proto.graph.node:
        assert bool(changed & set(node.input)) == (
            node.name in {layer.name for layer in linear_layers(vision_graph.graph)}
        )
    assert attention_nodes(proto.graph) == attention_nodes(vision_graph.graph)
    assert {value.dtype for name, value in values(proto).items() if "_zero" in name} == {np.dtype(np.int8)}
    assert all(
        value == 0 for name, value in values(proto).items() if name.endswith("_zero") and not value.shape
    )
    assert [opset.version for opset in proto.opset_import] == [18]


def test_a_layer_whose_input_has_an_outlier_is_kept(vision_graph: onnx.ModelProto) -> None:
    """A largest value of 100 times the mean one leaves 127 / 100 steps for the others: 13 dB."""
    inputs = measure_inputs(vision_graph, PIXELS)
    assert kept_layers(vision_graph, inputs, TENSORRT) == []
    layers = linear_layers(vision_graph.graph)
    found = inputs[layers[4].input[0]]
    inputs[layers[4].input[0]] = replace(found, highest=100 * found.mean_square**0.5)
    assert kept_layers(vision_graph, inputs, TENSORRT, {layers[9].name}) == [layers[4].name, layers[9].name]
    names = values(to_int8(vision_graph, inputs, TENSORRT, [layers[4].name]))
    assert layers[4].input[1] in names
    assert f"{layers[4].input[1]}_quantized" not in names
    assert f"{layers[5].input[1]}_quantized" in names


@pytest.mark.parametrize(("noisy", "bars"), [("tower", len(INPUT_BARS_DB)), ("", 1)])
def test_a_towers_noise_counts_where_its_connector_hides_it(
    model: TinyLlava, vision_graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, noisy: str, bars: int
) -> None:
    source = VisionSource(vision_graph, trial_of(model), PIXELS)
    tower, embeddings = source.calibrated
    rows = np.arange(tower.size, dtype=np.float32).reshape(tower.shape)
    source.calibrated = (tower + rows if noisy else tower, embeddings)
    tried: list[float] = []

    def kept(*given: Any) -> list[str]:
        tried.append(given[-1])
        return [str(given[-1])]

    monkeypatch.setattr(int8, "kept_layers", kept)
    monkeypatch.setattr(int8, "LEAST_SNR_DB", 10.0)
    BUILDERS["int8"](source)
    assert tried == list(INPUT_BARS_DB[:bars])


def test_inputs_are_measured_behind_a_node_of_several_outputs() -> None:
    """As a connector of two towers splits their features."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    nodes = [
        helper.make_node("Split", ["pixels"], ["first", "second"], axis=1, num_outputs=2),
        helper.make_node("MatMul", ["first", "weight"], ["one"], "one"),
        helper.make_node("MatMul", ["second", "weight"], ["two"], "two"),
        helper.make_node("Concat", ["one", "two"], ["embeddings"], axis=1),
    ]
    shape = [1, 2, 3, 4]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("pixels", "embeddings")
    ]
    graph = helper.make_graph(nodes, "split", values[:1], values[1:], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    pixels = np.stack([np.full((2, 3, 4), 0.5, np.float32)])
    pixels[0, 1] = -2.0
    found = measure_inputs(proto, pixels)
    assert (found["first"].lowest, found["first"].highest) == (0.5, 0.5)
    assert (found["second"].lowest, found["second"].highest) == (-2.0, -2.0)


def test_for_tensorrt_the_rest_is_float16_and_judged_by_rounding(
    model: TinyLlava, vision_graph: onnx.ModelProto, tmp_path: Path
) -> None:
    proto = to_float16(to_int8(vision_graph, measure_inputs(vision_graph, PIXELS), TENSORRT))
    proto = with_typed_scales(proto)
    write_vision_graph(tmp_path / "int8_fp16.onnx", proto)  # onnx's checker takes it
    types = element_types(proto.graph)
    assert {types[n.output[0]] for n in proto.graph.node if n.op_type == "DequantizeLinear"} == {
        TensorProto.FLOAT16
    }
    assert [n.name for n in proto.graph.node if n.op_type == "Cast"] == [
        "cast/pixels_fp16",
        "cast/embeddings",
    ]
    report = check_rounded(proto, "int8_fp16", trial_of(model))
    assert 20 < report["rounded"]["snr_db"] < 50
    figures = feature_figures(embeddings(model), evaluate_rounded(proto, PIXELS))
    assert figures["mean_token_cosine"] > 0.99


def test_every_precision_has_one_builder() -> None:
    assert set(BUILDERS) == set(PRECISIONS)


@pytest.mark.parametrize("name", ["int8", "int8_fp16", "bf16"])
def test_a_variant_is_written_with_its_report_and_status(
    model: TinyLlava, vision_graph: onnx.ModelProto, tmp_path: Path, name: str
) -> None:
    source = VisionSource(vision_graph, trial_of(model), PIXELS)
    files, status, report = write_variant(name, tmp_path / f"{name}.onnx", source)
    assert [path.name for path in files] == [f"{name}.onnx"]
    assert status == ("verified" if name == "int8" else "built, not run")
    assert ("onnxruntime" in report, "rounded" in report) == (name == "int8", name != "int8")
    if name != "bf16":
        assert (report["calibration_pictures"], report["linear_layers"]) == (2, 14)
        assert files[0].stat().st_size < 0.65 * vision_graph.ByteSize()


HOW = Preprocessing(
    aspect="square", resize="stretch", size=56, crop=None, resample=3, rescale_factor=1 / 255,
    mean=(0.5,) * 3, std=(0.5,) * 3,
)  # fmt: skip


def test_pictures_come_with_the_package_and_differ_from_those_that_judge() -> None:
    pixels = calibration_pixels(None, HOW)
    assert pixels.shape == (9, 3, 56, 56)
    assert 0.2 < pixels.std() < 1
    judges = {path.stem for path in (Path(calibration_files(None)[0]).parents[1]).glob("*.png")}
    assert not judges & {path.stem for path in calibration_files(None)}


def test_a_users_directory_is_read_in_order_or_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such directory"):
        calibration_pixels(tmp_path / "nowhere", HOW)
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UsageError, match="0 pictures"):
        calibration_pixels(tmp_path, HOW)
    for index, name in enumerate(("b.png", "a.JPG")):
        (tmp_path / name).write_bytes(calibration_files(None)[index].read_bytes())
    assert [path.name for path in calibration_files(tmp_path)] == ["a.JPG", "b.png"]
    assert len(calibration_pixels(tmp_path, HOW)) == 2
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"c\.png"):
        calibration_pixels(tmp_path, HOW)
