"""The CUDA layer, on a fake library and on NVIDIA's own without a driver."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runtimes.trt.fake_gpu import RTX_3060, FakeGpu
from tinyllava_edge.errors import BackendError, CudaError, CudaMemoryError, NoGpuError, UsageError
from tinyllava_edge.runtimes.trt import cudart, cudart_places
from tinyllava_edge.runtimes.trt.cuda_objects import Buffer, Event, Graph, Stream
from tinyllava_edge.runtimes.trt.cudart import Cudart, open_cudart
from tinyllava_edge.runtimes.trt.cudart_places import LIBRARY_VARIABLE


def test_a_gpu_is_read(gpu: FakeGpu) -> None:
    gpu.be(RTX_3060)
    found = open_cudart().read_gpu()
    assert (found.name, found.sm, found.multiprocessors, found.integrated) == ("Fake RTX 3060", 86, 28, False)
    assert (found.driver_cuda, found.runtime_cuda) == ("12.6", "12.6")


@pytest.mark.parametrize(
    ("device", "code", "message"),
    [
        ("none", 0, "there is no NVIDIA driver"),
        ("Fake Orin,87,8,1,11040", 0, r"driver is too old: it knows CUDA 11.4, .* is CUDA 12.6"),
        ("Fake Orin,87,8,1,12060", 100, r"driver but no GPU .* CUDA_VISIBLE_DEVICES"),
        ("Fake Orin,87,8,1,12060", 803, "driver is too old"),
    ],
)
def test_why_there_is_no_gpu_is_told(gpu: FakeGpu, device: str, code: int, message: str) -> None:
    gpu.be(device)
    if code:
        gpu.fail("cudaGetDeviceCount", code)
    with pytest.raises(NoGpuError, match=message):
        open_cudart()


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (2, CudaMemoryError, r"not enough memory.*cudaMalloc: out of memory \(CUDA error 2\)"),
        (700, CudaError, r"the GPU failed \(cudaMalloc: an illegal memory access"),
        (100, NoGpuError, "no GPU"),
    ],
)
def test_an_error_has_its_type_and_cudas_words(
    gpu: FakeGpu, code: int, error: type[BackendError], message: str
) -> None:
    cuda = open_cudart()
    gpu.fail("cudaMalloc", code)
    with pytest.raises(error, match=message):
        Buffer(cuda, 64, mapped=False)  # the host's half is freed again: the fixture looks


@pytest.mark.parametrize("mapped", [True, False])
def test_a_buffer_goes_to_the_device_and_back(gpu: FakeGpu, mapped: bool) -> None:
    cuda = open_cudart()
    stream, first, second = Stream(cuda), Buffer(cuda, 12, mapped=mapped), Buffer(cuda, 12, mapped=mapped)
    first.array[:] = np.arange(12)
    first.enqueue_upload(12, stream)
    if not mapped:  # device to device, as an engine would
        second._cuda.call("cudaMemcpyAsync", second._host, first.address, 12, 2, stream.handle)
        assert second.array[0] == 255, "the copy waits for the stream"
    stream.synchronize()
    expected = first.array if mapped else second.array
    np.testing.assert_array_equal(expected, np.arange(12))
    assert first.device_bytes == (0 if mapped else 12)
    assert first.address != first._host
    for thing in (first, second, stream, first):
        thing.close()


def test_a_copy_of_what_is_no_device_memory_is_refused(gpu: FakeGpu) -> None:
    cuda = open_cudart()
    stream, buffer = Stream(cuda), Buffer(cuda, 8, mapped=False)
    try:
        with pytest.raises(CudaError, match="invalid argument"):
            cuda.call("cudaMemcpyAsync", buffer._host, buffer._host, 8, 1, stream.handle)
        with pytest.raises(CudaError, match="invalid argument"):
            buffer.enqueue_upload(9, stream)
    finally:
        buffer.close()
        stream.close()


def test_a_graph_repeats_what_was_recorded(gpu: FakeGpu) -> None:
    cuda = open_cudart()
    stream, buffer = Stream(cuda), Buffer(cuda, 4, mapped=False)
    buffer.array[:] = 1
    stream.begin_capture()
    buffer.enqueue_upload(4, stream)
    buffer.enqueue_download(4, stream)
    graph = Graph(cuda, stream)
    stream.synchronize()
    for value in (5, 7):
        buffer.array[:] = value
        graph.launch()
        stream.synchronize()
        assert (buffer.array == value).all()
    for thing in (graph, buffer, stream):
        thing.close()


def test_a_capture_that_fails_can_be_abandoned(gpu: FakeGpu) -> None:
    cuda = open_cudart()
    stream = Stream(cuda)
    stream.begin_capture()
    gpu.fail("cudaGraphInstantiateWithFlags", 700)
    with pytest.raises(CudaError):
        Graph(cuda, stream)
    gpu.recover()
    stream.begin_capture()
    stream.abandon_capture()
    stream.synchronize()
    stream.close()


def test_events_measure_time_on_the_device(gpu: FakeGpu) -> None:
    cuda = open_cudart()
    stream, start, end = Stream(cuda), Event(cuda), Event(cuda)
    start.record(stream)
    end.record(stream)
    with pytest.raises(CudaError):
        end.ms_since(start)  # not reached yet
    stream.synchronize()
    assert end.ms_since(start) == 1.0
    for thing in (start, end, stream):
        thing.close()


def test_no_library_at_all_names_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, "/nowhere/libcudart.so.12")
    with pytest.raises(NoGpuError, match=r"tried /nowhere/libcudart.so.12\. On a Jetson: sudo apt install"):
        open_cudart()


def test_a_library_that_is_no_cuda_runtime_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, "libm.so.6")
    with pytest.raises(NoGpuError, match="has no cudaDriverGetVersion"):
        open_cudart()


def test_a_driver_too_old_for_the_first_library_may_do_for_the_next(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = os.environ[LIBRARY_VARIABLE]
    seen: list[str] = []

    class Choosy(Cudart):
        def __init__(self, path: str, device: int) -> None:
            seen.append(path)
            if path == "13":
                raise NoGpuError("too old for 13")
            super().__init__(fake, device)

    monkeypatch.setattr(cudart, "Cudart", Choosy)
    monkeypatch.setattr(cudart, "cudart_places", lambda: iter(["13", "12"]))
    assert open_cudart().path == fake
    assert seen == ["13", "12"]


def test_libraries_are_looked_for_in_packages_and_in_jetpack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(cudart_places, "_loaded", lambda: ())
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.13").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = list(cudart_places.cudart_places())
    assert found[:2] == ["libcudart.so.13", "libcudart.so.12"]
    assert str(folder / "libcudart.so.13") in found


@pytest.mark.network
@pytest.mark.parametrize("package", ["nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"])
def test_the_genuine_library_says_that_there_is_no_driver(tmp_path: Path, package: str) -> None:
    if Path("/dev/nvidiactl").exists() or Path("/dev/nvhost-gpu").exists():
        pytest.skip("needs a machine without an NVIDIA driver")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), package]
    subprocess.run(pip, check=True)
    (library,) = tmp_path.rglob("libcudart.so.1?")
    cuda = Cudart(str(library))  # has every function that we call
    with pytest.raises(NoGpuError, match=r"no NVIDIA driver \(cudaGetDeviceCount: .*\(CUDA error 35\)"):
        cuda.read_gpu()


def test_a_gpu_is_chosen_by_its_number(gpu: FakeGpu) -> None:
    gpu.be(f"Fake Orin,87,8,1,12060;{RTX_3060}")
    assert [open_cudart(number).read_gpu().name for number in (0, 1)] == ["Fake Orin", "Fake RTX 3060"]
    assert gpu.current == 1
    with pytest.raises(UsageError, match=r"no GPU 2\. Those there are: 0 \(Fake Orin\), 1 \(Fake RTX 3060\)"):
        open_cudart(2)


def test_of_two_libraries_the_one_that_does_is_taken_and_it_is_said(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    monkeypatch.setattr(cudart, "note", said.append)
    fake = os.environ[LIBRARY_VARIABLE]
    newer = tmp_path / "libcudart.so.13"
    shutil.copy(fake, newer)  # another library to the loader
    monkeypatch.setattr(cudart, "cudart_places", lambda: iter([str(newer), fake]))
    monkeypatch.setenv("FAKE_CUDART_REFUSES", str(newer))
    assert open_cudart().path == fake
    assert said == [
        f"2 CUDA libraries are on the path: {newer} does not work with this driver, {fake} does. Remove the "
        "first, or name one with TINYLLAVA_EDGE_CUDART."
    ]
    gpu.be("Fake Orin,87,8,1,11040")
    with pytest.raises(NoGpuError, match=rf"too old: .*{newer} is CUDA"):
        open_cudart()


def test_what_tensorrt_has_loaded_comes_before_what_the_loader_knows(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = os.environ[LIBRARY_VARIABLE]
    Cudart(fake)
    monkeypatch.delenv(LIBRARY_VARIABLE)
    assert fake in cudart_places._loaded()
    loaded = "/opt/tensorrt/libcudart.so.12.6.77"
    monkeypatch.setattr(cudart_places, "_loaded", lambda: (loaded,))
    found = list(cudart_places.cudart_places())
    assert found[:2] == [loaded, "libcudart.so.13"]
    assert "libcudart.so.12" not in found  # the same, by its other name
