"""TensorRT-RTX builds engines here without a GPU: what is in them, and what goes wrong on purpose.

Not one of these engines has run. What the plans show holds for TensorRT-RTX; TensorRT on a Jetson is older,
has other kernels, and shows its own when it builds there.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests.runtimes.trt.graphs import (
    typed_product,
    with_float32_attention,
    with_quantized_attention,
    with_quantized_linears,
    with_unknown_operator,
)
from tinyllava_edge.checkpoint.names import bundle_path, checkpoint_path
from tinyllava_edge.errors import (
    EngineLoadError,
    EngineMemoryError,
    EnginePlanError,
    TensorRTError,
    UnsupportedGraphError,
    UnsupportedPrecisionError,
    UsageError,
)
from tinyllava_edge.runtimes.trt.binding import open_tensorrt
from tinyllava_edge.runtimes.trt.builder import BuiltEngine, build_engine
from tinyllava_edge.runtimes.trt.fusion import Fusion, read_fusion
from tinyllava_edge.runtimes.trt.options import EngineOptions
from tinyllava_edge.runtimes.trt.plan import EnginePlan, PlanTensor, checked_plan_facts, parse_plan
from tinyllava_edge.runtimes.trt.process import build_engine_apart

pytestmark = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx-cu13 (Linux, x86-64): pip install -e .[dev]"
)
GRAPH = bundle_path("nano") / "vision" / "fp16.onnx"
SMS = (75, 80, 86, 89, 120)


def rtx(**options: Any) -> EngineOptions:
    return EngineOptions(**{"target": "tensorrt-rtx", "sms": (86,), "max_batch": 4, **options})


def build(path: Path, **options: Any) -> BuiltEngine:
    return build_engine(path, rtx(**options), verbose=True)


def run_command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tinyllava_edge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    onnx.save_model(proto, folder / "graph.onnx")
    return folder / "graph.onnx"


@pytest.fixture(scope="module")
def nano() -> onnx.ModelProto:
    return onnx.load(GRAPH)


@pytest.fixture(scope="module")
def engine() -> BuiltEngine:
    return build(GRAPH)


@pytest.fixture(scope="module")
def plan(engine: BuiltEngine) -> EnginePlan:
    return parse_plan(engine.log)


@pytest.mark.parametrize("sm", SMS)
def test_nano_on_every_gpu(sm: int) -> None:
    """Every attention layer that the feature layer needs is one kernel, and no product is in float32."""
    config = json.loads((checkpoint_path("nano") / "config.json").read_text(encoding="utf-8"))
    layers = config["vision_config"]["num_hidden_layers"]
    used = layers + 1 + config["vision_feature_layer"]  # hidden state -1 is the last layer's
    engine = build(GRAPH, sms=(sm,))
    found = parse_plan(engine.log)
    assert found.inputs == (PlanTensor("pixels", "Float", (-1, 3, 96, 96)),)
    assert found.outputs == (PlanTensor("embeddings", "Float", (-1, 35, 256)),)
    assert checked_plan_facts(engine) == found.facts()
    assert found.num_fused_attention == used == 5
    # The patches, four products a layer (q, k and v are one), two in the connector.
    assert found.gemms == {"Half": 1 + 4 * used + 2}
    weights = sum(numpy_helper.to_array(t).nbytes for t in onnx.load(GRAPH).graph.initializer)
    # Turing takes rows in multiples of eight, which pads the patches' three colours.
    assert weights * 0.98 < found.weight_bytes < weights * 1.12
    assert 0 < found.scratch_bytes <= found.activation_bytes
    assert len(engine.plan) == engine.facts["plan_bytes"] > found.weight_bytes


def test_what_reads_an_inspector_counts_the_same_kernels(engine: BuiltEngine, plan: EnginePlan) -> None:
    """The plan that a build prints is what an engine's inspector says, a line a layer."""
    (text,) = [message.text for message in engine.log if message.text.startswith("Layers:")]
    assert read_fusion(text) == Fusion(layers=len(plan.layers), fused=5)
    names = [layer.name for layer in plan.layers]
    assert read_fusion(json.dumps({"Layers": names})) == Fusion(layers=len(names), fused=5)


def test_a_profile_of_one_picture_is_smaller(plan: EnginePlan) -> None:
    single = parse_plan(build(GRAPH, max_batch=1).log)
    assert single.inputs[0].shape == (1, 3, 96, 96)
    assert plan.inputs[0].shape == (-1, 3, 96, 96)
    assert single.scratch_bytes <= plan.scratch_bytes


def test_weights_beside_the_graph_are_found(
    nano: onnx.ModelProto, engine: BuiltEngine, tmp_path: Path
) -> None:
    """As large towers have them: the engine has the same kernels and as many bytes of weights."""
    proto = onnx.ModelProto()
    proto.CopyFrom(nano)
    onnx.save_model(proto, tmp_path / "nano.onnx", save_as_external_data=True, location="nano.onnx.data")
    assert (tmp_path / "nano.onnx").stat().st_size < 500_000
    assert parse_plan(build(tmp_path / "nano.onnx").log).facts() == parse_plan(engine.log).facts()


def test_int8_of_the_linear_layers_keeps_attention_fused(nano: onnx.ModelProto, tmp_path: Path) -> None:
    engine = build(saved(with_quantized_linears(nano), tmp_path))
    assert checked_plan_facts(engine)["gemms"] == {"Half": 1, "Int8": 22}


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (with_quantized_attention, "0 of 5 attention layers run as one fused kernel"),
        (with_float32_attention, "10 matrix multiplications are in float32, expected 0"),
    ],
)
def test_a_planted_regression_is_refused(
    nano: onnx.ModelProto, tmp_path: Path, plant: Any, fault: str
) -> None:
    engine = build(saved(plant(nano), tmp_path))
    with pytest.raises(EnginePlanError, match=fault) as error:
        checked_plan_facts(engine)
    assert "0 of 5 attention layers" in str(error.value)


def test_an_island_in_float32_is_allowed_where_the_export_says_so(
    nano: onnx.ModelProto, tmp_path: Path
) -> None:
    """The same graph that is refused above, once its attention is declared as kept in float32."""
    engine = build(saved(with_float32_attention(nano), tmp_path))
    products = engine.facts["float32_products"]
    islands = [{"nodes": products[i : i + 2], "in_attention": True} for i in range(0, 10, 2)]
    assert checked_plan_facts(engine, islands)["float32_gemms"] == len(products) == 10
    with pytest.raises(EnginePlanError, match="10 matrix multiplications are in float32, expected 8"):
        checked_plan_facts(engine, islands[1:])


def test_other_names_or_types_are_refused(engine: BuiltEngine) -> None:
    pictures = {"name": "pictures", "dtype": "HALF", "shape": [1]}
    other = replace(engine, facts={**engine.facts, "inputs": [pictures]})
    with pytest.raises(EnginePlanError, match=r"it reads pixels Float .*, expected pictures Half \[1\]"):
        checked_plan_facts(other)


def test_a_log_without_a_plan_is_refused() -> None:
    with pytest.raises(EnginePlanError, match="expected one engine plan in TensorRT's log, found 0"):
        parse_plan([])


def test_an_unknown_operator_is_named(nano: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedGraphError, match=r"node 'connector\.1/\S+' \(NoSuchOperator\)") as error:
        build(saved(with_unknown_operator(nano), tmp_path))
    assert error.value.messages  # what the library logged is there too


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(GRAPH.read_bytes()[:100_000])
    with pytest.raises(UnsupportedGraphError, match=r"cut\.onnx: TensorRT-RTX 1\S+ cannot read this graph"):
        build(path)


def test_too_little_workspace() -> None:
    with pytest.raises(EngineMemoryError, match=r"a workspace of 1 MiB is too small.*Give a larger --work"):
        build(GRAPH, workspace_bytes=1 << 20)


def test_a_precision_that_a_gpu_does_not_have(tmp_path: Path) -> None:
    path = saved(typed_product(TensorProto.BFLOAT16), tmp_path)
    with pytest.raises(
        UnsupportedPrecisionError, match=r"the graph computes in BF16.*from compute capability 80"
    ):
        build(path, sms=(75,))
    assert parse_plan(build(path).log).gemms == {"BFloat16": 1}


def test_float32_on_turing_is_refused_with_a_next_step(tmp_path: Path) -> None:
    path = saved(typed_product(TensorProto.FLOAT), tmp_path)
    with pytest.raises(UnsupportedPrecisionError, match=r"needs FP32 GEMM.* SM 75.*Build the fp16 variant"):
        build(path, sms=(75,))
    assert parse_plan(build(path).log).float32_gemms


def test_float8_needs_ada(tmp_path: Path) -> None:
    """As on Orin, which is of compute capability 8.7: refused before the library is asked."""
    path = saved(typed_product(TensorProto.FLOAT, quantized=TensorProto.FLOAT8E4M3FN), tmp_path)
    with pytest.raises(UnsupportedPrecisionError, match=r"computes in FP8, .*asked for is 86"):
        build(path)
    with pytest.raises(UnsupportedPrecisionError, match="asked for is 87"):
        build(path, sms=(), device_sm=87)
    assert build(path, sms=(89,)).facts["types"] == ["FLOAT", "FP8"]


def test_a_fixed_batch_allows_no_other(tmp_path: Path) -> None:
    path = saved(typed_product(TensorProto.FLOAT16, batch=2), tmp_path)
    with pytest.raises(UsageError, match=r"a fixed batch of 2, asked for are \(1, 1, 4\)"):
        build(path)
    assert parse_plan(build(path, min_batch=2, opt_batch=2, max_batch=2).log).inputs[0].shape[0] == 2


def test_a_jetson_is_sent_to_tensorrt() -> None:
    with pytest.raises(UsageError, match=r"does not build for SM 87; .*A Jetson needs --target tensorrt"):
        build(GRAPH, sms=(87,))


def test_ctrl_c_stops_a_build() -> None:
    """What the progress callback raises comes back out of the library, which is usable afterwards."""

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "Optimizing graph":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(GRAPH, rtx(), stop)
    assert open_tensorrt("tensorrt-rtx").create_builder() is not None


def test_what_is_no_engine_is_not_loaded(engine: BuiltEngine) -> None:
    binding = open_tensorrt("tensorrt-rtx")
    runtime = binding.create_runtime()
    with pytest.raises(EngineLoadError, match=r"does not load this engine of 1000 bytes: .*serialization"):
        binding.deserialize(runtime, b"x" * 1000)
    # A real one needs a GPU: the driver is what is missing, and the message says so.
    if not Path("/dev/nvidiactl").exists():
        with pytest.raises(TensorRTError, match="no NVIDIA driver"):
            binding.deserialize(runtime, engine.plan)


def test_a_killed_build_is_an_error(tmp_path: Path) -> None:
    """As when the system wants the memory back: the engine's file is not there, and the message says why."""

    def kill_the_builder(phase: str, done: int, total: int) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in map(int, children):
            if b"trt.process" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)
                time.sleep(0.1)

    with pytest.raises(EngineMemoryError, match="the system killed the build"):
        build_engine_apart(GRAPH, rtx(), tmp_path / "nano.engine", kill_the_builder)
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "engines"
    arguments = ["build", "nano", "--target", "tensorrt-rtx", "--sm", "86", "--json"]
    result = json.loads(run_command(*arguments, "-o", str(out)).stdout)
    assert result == {"schema": 1, **json.loads((out / "report.json").read_text(encoding="utf-8"))}
    assert {path.name for path in out.iterdir()} == {
        "fp16_sm86.engine",
        "report.json",
        "report.md",
    }
    (row,) = result["engines"]
    assert row["sm"] == 86
    assert row["status"] == "built, not run"
    assert row["plan"]["fused_attention"] == row["softmax_layers"] == 5
    assert row["plan_bytes"] == (out / "fp16_sm86.engine").stat().st_size
    assert row["peak_memory_bytes"] > row["plan_bytes"]
    again = run_command(*arguments, "-o", str(out))
    assert again.returncode == 2
    assert "exists already. Give --force" in again.stderr
