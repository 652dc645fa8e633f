"""The vision half on TensorRT: our logic against a fake engine, which computes with ONNX Runtime."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.runtimes import bundles
from tests.runtimes.contract import VisionContract
from tests.runtimes.trt.fake_gpu import ORIN, RTX_3060, FakeGpu
from tinyllava_edge.errors import (
    BackendError,
    CudaError,
    CudaMemoryError,
    DiskFullError,
    EngineLoadError,
    NoGpuError,
)
from tinyllava_edge.runtimes.ort import OnnxVision
from tinyllava_edge.runtimes.trt.binding import open_tensorrt
from tinyllava_edge.runtimes.trt.builder import build_engine
from tinyllava_edge.runtimes.trt.cache import EngineCache, StoredEngine
from tinyllava_edge.runtimes.trt.cudart import open_cudart
from tinyllava_edge.runtimes.trt.kernel_file import KernelFile
from tinyllava_edge.runtimes.trt.lookup import read_board
from tinyllava_edge.runtimes.trt.options import EngineOptions
from tinyllava_edge.runtimes.trt.record import EngineKey, new_record
from tinyllava_edge.runtimes.trt.vision import TensorRTVision

Floats = npt.NDArray[np.float32]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "fp32.onnx"
    bundles.write_tiny_onnx(path)
    return path


@pytest.fixture
def pixels() -> Floats:
    shape = (2, 3, bundles.IMAGE_SIZE, bundles.IMAGE_SIZE)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def build(
    graph: Path, *, target: str = "tensorrt", batches: tuple[int, int, int] = (1, 1, 4)
) -> StoredEngine:
    """Build, keep in the cache and find again."""
    least, tuned, largest = batches
    options = EngineOptions(target=target, min_batch=least, opt_batch=tuned, max_batch=largest)
    board = read_board(open_tensorrt(target), open_cudart().read_gpu())
    key = EngineKey(onnx={graph.name: "0" * 64}, board=board, profile=batches, flags={})
    cache = EngineCache(graph.parent / "engines")
    with cache.work_file() as work:
        work.write_bytes(build_engine(graph, options).plan)
        cache.store(new_record(key, "fp32", work), work)
    return cache.find(key)


def open_engine(
    stored: StoredEngine, *, target: str = "tensorrt", hidden: int = bundles.HIDDEN
) -> TensorRTVision:
    spec = bundles.vision_spec(hidden=hidden)
    with stored:
        return TensorRTVision(open_tensorrt(target), open_cudart(), stored, spec)


def expected(graph: Path, pixels: Floats) -> Floats:
    backend = OnnxVision(graph, bundles.vision_spec(), name="x", threads=1)
    return np.concatenate([backend.encode(pixels[i : i + 1]) for i in range(len(pixels))])


@pytest.mark.parametrize("device", [ORIN, RTX_3060], ids=["mapped", "pinned"], scope="class")
class TestContract(VisionContract):
    @pytest.fixture
    def backend(self, gpu: FakeGpu, graph: Path, device: str) -> Iterator[TensorRTVision]:
        gpu.be(device)
        backend = open_engine(build(graph))
        yield backend
        backend.close()

    @pytest.fixture
    def shape(self) -> tuple[int, int]:
        return (bundles.NUM_TOKENS, bundles.HIDDEN)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("device", [ORIN, RTX_3060], ids=["mapped", "pinned"])
def test_every_run_gives_what_onnxruntime_gives(
    gpu: FakeGpu, graph: Path, pixels: Floats, device: str, target: str
) -> None:
    gpu.be(device)
    backend = open_engine(build(graph, target=target), target=target)
    many = np.concatenate([pixels, pixels[::-1], pixels + 1])  # six pictures, four at once
    for _ in range(4):  # first run, recorded run, replayed runs
        np.testing.assert_allclose(backend.encode(pixels[:1]), expected(graph, pixels[:1]), atol=1e-5)
    for value in (many, many[:3], many[::-1], many[1:2]):
        np.testing.assert_allclose(backend.encode(value), expected(graph, value), atol=1e-5)
    backend.close()


def test_a_graph_is_recorded_on_the_second_run_and_again_for_another_batch(
    gpu: FakeGpu, graph: Path, pixels: Floats
) -> None:
    backend = open_engine(build(graph))
    states = []
    for value in (pixels[:1], pixels[:1], pixels[:1], pixels, pixels, pixels[:1]):
        backend.encode(value)
        states.append(backend.graph)
    assert states == ["none yet", "captured", "captured", "none yet", "captured", "none yet"]
    backend.close()


@pytest.mark.parametrize("function", ["cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"])
def test_where_no_graph_can_be_recorded_it_goes_on_without_and_says_so(
    gpu: FakeGpu, graph: Path, pixels: Floats, function: str
) -> None:
    backend = open_engine(build(graph))
    backend.encode(pixels)
    gpu.fail(function, 901)
    for _ in range(2):
        np.testing.assert_allclose(backend.encode(pixels), expected(graph, pixels), atol=1e-5)
    assert backend.graph.startswith("not possible: ")
    assert function in backend.graph
    gpu.recover()
    backend.close()


def test_tensorrt_rtx_records_graphs_itself(gpu: FakeGpu, graph: Path, pixels: Floats) -> None:
    backend = open_engine(build(graph, target="tensorrt-rtx"), target="tensorrt-rtx")
    for _ in range(3):
        backend.encode(pixels)
    assert backend.graph == "by TensorRT"
    assert backend._context is not None
    assert backend._context.name == "WHOLE_GRAPH_CAPTURE"
    backend.close()


@pytest.mark.parametrize(("device", "buffers"), [(ORIN, 0), (RTX_3060, 4 * (3 * 28 * 28 + 4 * 64) * 4)])
def test_what_it_holds_is_counted(gpu: FakeGpu, graph: Path, device: str, buffers: int) -> None:
    gpu.be(device)
    stored = build(graph)
    plan_bytes = stored.record.plan_bytes
    backend = open_engine(stored)
    memory = backend.memory
    assert (memory.plan, memory.context, memory.buffers) == (plan_bytes, 1 << 20, buffers)
    assert memory.pinned == 4 * (3 * 28 * 28 + 4 * 64) * 4
    backend.close()


def test_a_batch_under_the_smallest_is_filled_up(gpu: FakeGpu, graph: Path, pixels: Floats) -> None:
    backend = open_engine(build(graph, batches=(2, 2, 2)))
    np.testing.assert_allclose(backend.encode(pixels[:1]), expected(graph, pixels[:1]), atol=1e-5)
    three = np.concatenate([pixels, pixels[:1]])
    np.testing.assert_allclose(backend.encode(three), expected(graph, three), atol=1e-5)
    backend.close()


def test_the_time_on_the_device_is_measured(gpu: FakeGpu, graph: Path, pixels: Floats) -> None:
    gpu.be(RTX_3060)
    backend = open_engine(build(graph))
    assert backend.device_ms is None
    backend.encode(pixels)
    assert backend.device_ms == 4.0  # of the fake clock: upload, run, download, end mark
    backend.close()


def test_an_engine_of_another_width_than_the_manifest_says_is_refused(gpu: FakeGpu, graph: Path) -> None:
    with pytest.raises(EngineLoadError, match=r"expected .*128.* found .*64.*Export the bundle again"):
        open_engine(build(graph), hidden=128)


@pytest.mark.parametrize("change", ["version", "gpu"])
def test_an_engine_of_another_tensorrt_or_gpu_does_not_load(gpu: FakeGpu, graph: Path, change: str) -> None:
    stored = build(graph)
    if change == "version":
        gpu.be_version("10.7.0")
    else:
        gpu.be("Fake Thor,110,20,1,13000")
    with pytest.raises(EngineLoadError, match=r"engine plan file is for .*build it again here"):
        open_engine(stored)


def test_without_a_driver_it_says_so(gpu: FakeGpu, graph: Path) -> None:
    stored = build(graph)
    cuda = open_cudart()
    gpu.be("none")
    with stored, pytest.raises(NoGpuError, match="no NVIDIA driver"):
        TensorRTVision(open_tensorrt("tensorrt"), cuda, stored, bundles.vision_spec())


@pytest.mark.parametrize(
    "function", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaEventCreate"]
)
@pytest.mark.parametrize("call", [1, 2])
def test_where_memory_runs_out_everything_is_freed(
    gpu: FakeGpu, graph: Path, function: str, call: int
) -> None:
    gpu.be(RTX_3060)
    stored = build(graph)
    gpu.fail(function, 2, call)
    if (function, call) == ("cudaStreamCreateWithFlags", 2):  # there is only one
        open_engine(stored).close()
        return
    with pytest.raises(CudaMemoryError, match="not enough memory"):
        open_engine(stored)
    gpu.recover()


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaStreamSynchronize", "cudaEventRecord"])
@pytest.mark.parametrize("runs", [0, 1, 2])
def test_a_gpu_that_fails_while_it_runs_is_reported(
    gpu: FakeGpu, graph: Path, pixels: Floats, function: str, runs: int
) -> None:
    gpu.be(RTX_3060)
    backend = open_engine(build(graph))
    for _ in range(runs):
        backend.encode(pixels)
    gpu.fail(function, 700)
    if runs < 2 or function != "cudaMemcpyAsync":  # a recorded graph copies without the call
        with pytest.raises(CudaError, match="illegal memory access"):
            backend.encode(pixels)
    gpu.recover()
    np.testing.assert_allclose(backend.encode(pixels), expected(graph, pixels), atol=1e-5)
    backend.close()


def test_an_engine_that_refuses_to_run_is_reported(gpu: FakeGpu, graph: Path, pixels: Floats) -> None:
    gpu.spoil(vision="fail")
    backend = open_engine(build(graph))
    with pytest.raises(BackendError, match="Build the engine again with --force"):
        backend.encode(pixels)
    backend.close()


def test_another_thread_computes_on_the_same_gpu(gpu: FakeGpu, graph: Path, pixels: Floats) -> None:
    gpu.be(f"{ORIN};{ORIN}")
    with build(graph) as stored:
        backend = TensorRTVision(open_tensorrt("tensorrt"), open_cudart(1), stored, bundles.vision_spec())
    with ThreadPoolExecutor(1) as another:
        assert another.submit(lambda: gpu.current).result() == 0
        another.submit(backend.encode, pixels).result()
        assert another.submit(lambda: gpu.current).result() == 1
    backend.close()


class TestKernels:
    """TensorRT-RTX compiles at the first run, and keeps what it compiled beside the plan."""

    @pytest.fixture
    def stored(self, gpu: FakeGpu, graph: Path) -> StoredEngine:
        gpu.be(RTX_3060)
        return build(graph, target="tensorrt-rtx")

    @pytest.fixture
    def compiled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
        log = tmp_path / "compiled"
        monkeypatch.setenv("FAKE_RTX_COMPILED", str(log))
        return lambda: len(log.read_text().splitlines()) if log.exists() else 0

    @pytest.fixture
    def said(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        lines: list[str] = []
        monkeypatch.setattr("tinyllava_edge.runtimes.trt.execution.note", lines.append)
        return lines

    def run(self, stored: StoredEngine, pixels: Floats) -> None:
        """Open, run two batch sizes, close."""
        cache = EngineCache(stored.kernels.path.parent) if stored.kernels else EngineCache()
        backend = open_engine(cache.find(stored.record.key), target="tensorrt-rtx")
        for value in (pixels[:1], pixels, pixels[:1]):
            backend.encode(value)
        backend.close()

    def test_the_second_start_compiles_nothing(
        self, stored: StoredEngine, pixels: Floats, compiled: Callable[[], int], said: list[str]
    ) -> None:
        assert stored.kernels is not None
        assert stored.kernels.read() == b""
        self.run(stored, pixels)
        assert compiled() == 1
        assert stored.kernels.path.stat().st_mode & 0o777 == 0o600
        written = stored.kernels.path.stat().st_mtime_ns
        self.run(stored, pixels)
        assert compiled() == 1
        assert stored.kernels.path.stat().st_mtime_ns == written
        assert said == []

    @pytest.mark.parametrize(
        ("fault", "word"),
        [
            ("damaged", "is damaged"),
            ("foreign", "is of another engine"),
            ("open to others", "is not private to you"),
            ("another gpu", "does not take"),
        ],
    )
    def test_what_cannot_be_taken_is_said_and_written_anew(
        self,
        stored: StoredEngine,
        pixels: Floats,
        compiled: Callable[[], int],
        said: list[str],
        fault: str,
        word: str,
    ) -> None:
        assert stored.kernels is not None
        self.run(stored, pixels)
        path = stored.kernels.path
        good = path.read_bytes()
        if fault == "damaged":
            path.write_bytes(good[:-1])
        elif fault == "foreign":
            KernelFile(path, "0" * 64).write(b"kernels of 86")
        elif fault == "open to others":
            path.chmod(0o606)
        else:
            stored.kernels.write(b"kernels of 75")
        self.run(stored, pixels)
        assert compiled() == 2
        (line,) = said
        assert line.startswith("compiled kernels: ")
        assert word in line
        assert path.read_bytes() == good
        self.run(stored, pixels)
        assert compiled() == 2

    def test_a_full_disk_does_not_stop_a_run(
        self, stored: StoredEngine, pixels: Floats, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, content: object, *, mode: int) -> None:
            raise DiskFullError(f"{path}: the disk is full")

        monkeypatch.setattr("tinyllava_edge.runtimes.trt.kernel_file.write_bytes", full)
        self.run(stored, pixels)
        (line,) = said
        assert line.startswith("compiled kernels are not kept")
        assert line.endswith("the disk is full")

    def test_kernels_go_with_their_engine(self, stored: StoredEngine, pixels: Floats) -> None:
        assert stored.kernels is not None
        self.run(stored, pixels)
        cache = EngineCache(stored.kernels.path.parent)
        with cache.work_file() as work:
            work.write_bytes(b"another plan")
            cache.store(new_record(stored.record.key, "fp32", work), work)
        assert list(cache.folder.glob("*.kernels")) == []
