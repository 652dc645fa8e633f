"""What only a machine with a GPU can show about running; each docstring begins with why.

TINYLLAVA_EDGE_REQUIRE=tensorrt,cuda python -m pytest tests/device
"""

import time
from contextlib import closing
from ctypes import byref, c_int, c_size_t
from pathlib import Path

import numpy as np
import pytest

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.model import open_bundle
from tinyllava_edge.runtimes.ort import open_vision, open_vision_cuda
from tinyllava_edge.runtimes.trt.binding import open_tensorrt
from tinyllava_edge.runtimes.trt.cache import EngineCache
from tinyllava_edge.runtimes.trt.choose import DeviceBuild
from tinyllava_edge.runtimes.trt.cuda_objects import Buffer, Event, Graph, Stream
from tinyllava_edge.runtimes.trt.cudart import open_cudart
from tinyllava_edge.runtimes.trt.device_parity import measure_parity
from tinyllava_edge.runtimes.trt.options import EngineOptions
from tinyllava_edge.runtimes.trt.record import Choice
from tinyllava_edge.runtimes.trt.vision import TensorRTVision

pytestmark = [pytest.mark.device("cuda")]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(bundle_path("nano"))


@pytest.fixture(scope="module")
def chosen(bundle: Bundle) -> Choice:
    return DeviceBuild(bundle, EngineOptions(max_batch=2)).choose()


@pytest.fixture
def pixels(bundle: Bundle) -> np.ndarray:
    side = bundle.manifest.vision.image_size
    return np.random.default_rng(0).standard_normal((2, 3, side, side), dtype=np.float32)


def test_memory_copies_graphs_and_events_of_a_real_gpu() -> None:
    """The fake library keeps the rules that we know of; the real one has the last word."""
    cuda = open_cudart()
    gpu = cuda.read_gpu()
    stream, start, end = Stream(cuda), Event(cuda), Event(cuda)
    for mapped in {False, gpu.maps_host_memory}:
        buffer = Buffer(cuda, 1 << 20, mapped=mapped)
        stream.begin_capture()
        buffer.enqueue_upload(1 << 20, stream)
        buffer.enqueue_download(1 << 20, stream)
        graph = Graph(cuda, stream)
        buffer.array[:] = 7
        start.record(stream)
        graph.launch()
        end.record(stream)
        stream.synchronize()
        assert (buffer.array == 7).all()
        assert end.ms_since(start) >= 0
        graph.close()
        buffer.close()
    for thing in (start, end, stream):
        thing.close()


@pytest.mark.device("tensorrt")
def test_an_fp16_engine_passes_on_this_device(bundle: Bundle, chosen: Choice) -> None:
    """fp16 kernels differ by GPU and version; TensorRT 10.3 is the one to doubt."""
    assert (chosen.runtime, chosen.vision) == ("tensorrt+llamacpp", "fp16"), chosen.steps


@pytest.mark.device("tensorrt")
@pytest.mark.parametrize("mapped", [True, False])
def test_mapped_and_pinned_memory_with_and_without_graph_agree(
    bundle: Bundle, chosen: Choice, pixels: np.ndarray, mapped: bool
) -> None:
    """Whether kernels may read pinned host memory in place, and a stream be captured, the GPU decides."""
    assert chosen.engine is not None
    cache, binding, cuda = EngineCache(), open_tensorrt("tensorrt"), open_cudart()
    rows = []
    for use_graph in (False, True):
        with cache.find(cache.record(chosen.engine).key) as stored:
            spec = bundle.manifest.vision
            backend = TensorRTVision(binding, cuda, stored, spec, mapped=mapped, use_graph=use_graph)
        with closing(backend):
            rows += [backend.encode(pixels) for _ in range(3)]
            assert backend.graph == ("captured" if use_graph else "off")
    for other in rows[1:]:
        np.testing.assert_array_equal(rows[0], other)


@pytest.mark.device("tensorrt")
def test_the_inspector_counts_fused_attention(chosen: Choice) -> None:
    """An engine is loaded, and so inspected, only with a GPU; its kernels are of this GPU and version."""
    assert chosen.engine is not None
    facts = EngineCache().record(chosen.engine).facts
    assert facts["fusion"] == "attention fused in 5 of 5", facts
    assert facts["kernels"] > 5


@pytest.mark.device("tensorrt")
@pytest.mark.device("jetson")
def test_the_faster_buffers_are_kept_and_used(bundle: Bundle, chosen: Choice) -> None:
    """Whether mapped or copied buffers are faster only shared memory can show."""
    assert chosen.engine is not None
    facts = EngineCache().record(chosen.engine).facts
    times = facts["buffers_ms"]
    assert min(times.values()) > 0
    assert facts["mapped"] == (times["mapped"] <= times["copied"])
    with open_bundle(bundle, runtime="tensorrt+llamacpp") as model:
        assert isinstance(model.vision, TensorRTVision)
        assert model.vision.mapped == facts["mapped"]


@pytest.mark.device("tensorrt-rtx")
def test_compiled_kernels_are_kept_and_the_second_start_is_quicker(
    bundle: Bundle, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX compiles its kernels on the GPU that runs them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_CACHE_PATH", str(tmp_path / "driver"))  # the driver keeps some of its own
    DeviceBuild(bundle, EngineOptions(target="tensorrt-rtx")).choose("fp16")
    (kernels,) = EngineCache().folder.glob("*.kernels")  # of the comparison
    kernels.unlink()
    seconds, rows = [], []
    for _ in range(2):
        start = time.perf_counter()
        with open_bundle(bundle, runtime="tensorrt-rtx+llamacpp", vision="fp16") as model:
            rows.append(model.vision.encode(pixels[:1]))
        seconds.append(time.perf_counter() - start)
    assert kernels.stat().st_size > 1000
    assert seconds[1] < seconds[0], seconds
    np.testing.assert_array_equal(rows[0], rows[1])


@pytest.mark.device("tensorrt")
def test_the_last_gpu_builds_and_answers(bundle: Bundle) -> None:
    """Which GPU a library takes, and in which thread, several GPUs show."""
    count = c_int()
    open_cudart().call("cudaGetDeviceCount", byref(count))
    if count.value < 2:
        pytest.skip("needs two GPUs")
    last = count.value - 1
    choice = DeviceBuild(bundle, EngineOptions(device=last)).choose("fp16")
    assert choice.engine is not None
    name = open_cudart(last).read_gpu().name
    assert EngineCache().record(choice.engine).key.board.gpu == name
    with open_bundle(bundle, runtime="tensorrt+llamacpp", vision="fp16", device=last) as model:
        assert model.vision.name.endswith(name)
        assert "".join(model.chat("What is this?", bundle.root / "reference/wide.png"))


@pytest.mark.device("tensorrt")
def test_a_hundred_openings_leave_no_memory_behind(bundle: Bundle, chosen: Choice) -> None:
    """What TensorRT itself keeps is not seen by the fake library's counters."""
    cuda = open_cudart()
    free, available, total = [], c_size_t(), c_size_t()
    for _ in range(100):
        with open_bundle(bundle, runtime="tensorrt+llamacpp") as model:
            model.encode([bundle.root / "reference/wide.png"])
        cuda.call("cudaMemGetInfo", byref(available), byref(total))
        free.append(available.value)
    assert free[10] - free[-1] < 64 << 20


@pytest.mark.device("tensorrt")
def test_the_answer_is_the_one_of_the_cpu(bundle: Bundle, chosen: Choice) -> None:
    """The whole chain on the device: engine, hand-over, language model."""
    picture = bundle.root / "reference/portrait.png"
    answers = []
    for runtime in ("onnxruntime+llamacpp", "auto"):
        with open_bundle(bundle, runtime=runtime) as model:
            answers.append("".join(model.chat("What is this?", picture)))
    assert answers[0] == answers[1]


@pytest.mark.device("tensorrt")
def test_the_engine_is_faster_than_the_cpu(bundle: Bundle, chosen: Choice, pixels: np.ndarray) -> None:
    """Speed is the reason for TensorRT, and nothing without a GPU says anything of it."""
    times = {}
    for runtime in ("onnxruntime+llamacpp", "tensorrt+llamacpp"):
        with open_bundle(bundle, runtime=runtime) as model:
            model.vision.encode(pixels)
            start = time.perf_counter()
            for _ in range(20):
                model.vision.encode(pixels)
            times[runtime] = time.perf_counter() - start
    assert times["tensorrt+llamacpp"] < times["onnxruntime+llamacpp"], times


@pytest.mark.device("onnxruntime-cuda")
def test_onnxruntime_on_cuda_passes(bundle: Bundle, pixels: np.ndarray) -> None:
    """A session gets the CUDA provider only where there is a GPU."""
    backend = open_vision_cuda(bundle, BackendOptions())
    with closing(backend):
        assert not measure_parity(bundle, backend.encode, 2).fault("fp16")
        on_cpu = open_vision(bundle, BackendOptions())
        with closing(on_cpu):
            np.testing.assert_allclose(backend.encode(pixels), on_cpu.encode(pixels), atol=0.1)


@pytest.mark.device("jetson")
def test_a_jetson_is_known_and_shares_its_memory() -> None:
    """Names, numbers and flags of a board come from its own files and driver."""
    from tinyllava_edge.device import read_machine

    jetson = read_machine().jetson
    assert jetson is not None
    assert jetson.module is not None
    assert open_cudart().read_gpu().integrated
    assert Path("/etc/nvpmodel.conf").exists()
