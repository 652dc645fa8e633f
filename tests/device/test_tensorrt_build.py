"""What only a machine with a GPU can show about the builder; each docstring begins with why.

TINYLLAVA_EDGE_REQUIRE=tensorrt,cuda python -m pytest tests/device
"""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.errors import EngineBuildError, EngineLoadError
from tinyllava_edge.runtimes.trt.binding import open_tensorrt
from tinyllava_edge.runtimes.trt.builder import FIRST_SM, build_engine
from tinyllava_edge.runtimes.trt.cudart import open_cudart
from tinyllava_edge.runtimes.trt.options import EngineOptions
from tinyllava_edge.runtimes.trt.process import build_engine_apart

pytestmark = [pytest.mark.device("cuda")]
GRAPH = bundle_path("nano") / "vision" / "fp16.onnx"
OPTIONS = EngineOptions(target="tensorrt", max_batch=4)


@pytest.mark.device("tensorrt")
def test_nano_builds_and_loads() -> None:
    """TensorRT's builder times kernels on the GPU, and without one it cannot be created."""
    engine = build_engine(GRAPH, OPTIONS)
    binding = open_tensorrt("tensorrt")
    loaded = binding.deserialize(binding.create_runtime(), engine.plan)
    assert loaded.num_io_tensors == 2
    assert [tensor["shape"][0] for tensor in engine.facts["inputs"]] == [-1]


@pytest.mark.device("tensorrt")
def test_attention_is_fused_as_in_tensorrt_rtx() -> None:
    """Which kernels TensorRT chooses depends on version and GPU; known so far is TensorRT-RTX's choice."""
    engine = build_engine(GRAPH, OPTIONS, verbose=True)
    text = "\n".join(message.text for message in engine.log)
    assert "mha" in text.lower(), "no fused attention kernel is named in TensorRT's log"


@pytest.mark.device("tensorrt")
def test_the_timing_cache_is_written_and_taken(tmp_path: Path) -> None:
    """Kernel timings are of one GPU; TensorRT-RTX keeps none."""
    options = replace(OPTIONS, timing_cache=tmp_path / "timings.cache")
    first = build_engine(GRAPH, options)
    assert (tmp_path / "timings.cache").stat().st_size > 0
    assert build_engine(GRAPH, options).facts["seconds"] < first.facts["seconds"]
    (tmp_path / "timings.cache").write_bytes(b"damaged")
    assert build_engine(GRAPH, options).facts["plan_bytes"] > 0


@pytest.mark.device("tensorrt")
def test_a_version_compatible_engine_builds() -> None:
    """It holds TensorRT's lean runtime, which TensorRT-RTX does not have."""
    assert build_engine(GRAPH, replace(OPTIONS, version_compatible=True)).facts["plan_bytes"] > 0


@pytest.mark.device("tensorrt")
def test_a_damaged_engine_is_not_loaded() -> None:
    """Without a driver the library stops before it looks at all of an engine."""
    plan = bytearray(build_engine(GRAPH, OPTIONS).plan)
    plan[len(plan) // 2 :] = bytes(len(plan) - len(plan) // 2)
    binding = open_tensorrt("tensorrt")
    with pytest.raises(EngineLoadError):
        binding.deserialize(binding.create_runtime(), bytes(plan[: len(plan) // 4]))


@pytest.mark.device("tensorrt")
def test_trtexec_takes_our_line(tmp_path: Path) -> None:
    """The tool comes with TensorRT on a board and in NVIDIA's archives, not in wheels, and needs the GPU."""
    tool = shutil.which("trtexec") or "/usr/src/tensorrt/bin/trtexec"
    if not Path(tool).is_file():
        pytest.skip("trtexec is not installed")
    words = build_engine(GRAPH, OPTIONS).facts["trtexec"].split()
    done = subprocess.run([tool, *words[1:], "--skipInference"], cwd=tmp_path, check=False)
    assert done.returncode == 0


@pytest.mark.device("tensorrt")
@pytest.mark.device("jetson")
def test_peak_memory_of_a_build_on_a_board(tmp_path: Path) -> None:
    """Memory is shared with the GPU on a board, so a build must leave room; only there is it measured."""
    facts = build_engine_apart(GRAPH, OPTIONS, tmp_path / "nano.engine")
    assert facts["peak_memory_bytes"] < 3 << 30


@pytest.mark.device("tensorrt")
@pytest.mark.device("jetson")
def test_float8_is_refused_on_orin(tmp_path: Path) -> None:
    """What TensorRT itself says about FP8 on compute capability 8.7 can only be seen there."""
    import onnx

    from tests.runtimes.trt.graphs import typed_product

    if open_cudart().read_gpu().sm >= FIRST_SM["FP8"]:
        pytest.skip("this board has FP8, as a Thor does")
    path = tmp_path / "fp8.onnx"
    onnx.save_model(typed_product(onnx.TensorProto.FLOAT, quantized=onnx.TensorProto.FLOAT8E4M3FN), path)
    with pytest.raises(EngineBuildError):
        build_engine(path, replace(OPTIONS, max_batch=1))


@pytest.mark.device("tensorrt-rtx")
def test_an_engine_that_was_built_without_a_gpu_loads_on_one() -> None:
    """TensorRT-RTX builds without a GPU, and loads nothing without one."""
    engine = build_engine(GRAPH, EngineOptions(target="tensorrt-rtx", max_batch=4))
    binding = open_tensorrt("tensorrt-rtx")
    assert binding.deserialize(binding.create_runtime(), engine.plan).num_io_tensors == 2
