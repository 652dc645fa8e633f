"""What `doctor` says of GPUs, their libraries and the engine cache."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.runtimes.trt.fake_gpu import RTX_3060, FakeGpu
from tests.runtimes.trt.test_cache import make_key, store
from tinyllava_edge.device import Cpu, Machine
from tinyllava_edge.jetson import Jetson
from tinyllava_edge.runtimes import doctor, doctor_gpu
from tinyllava_edge.runtimes.trt.cache import EngineCache, engine_folder


def machine(jetson: Jetson | None, gpus: tuple[str, ...] = ()) -> Machine:
    cpu = Cpu(
        model="x",
        architecture="aarch64",
        logical_cpus=6,
        physical_cores=6,
        quota=None,
        usable_cores=6,
        features=(),
    )
    return Machine(system="Linux", cpu=cpu, memory=None, gpus=gpus, jetson=jetson)


def test_gpu_libraries_and_engines_have_their_lines(gpu: FakeGpu) -> None:
    gpu.be(RTX_3060)
    cache = EngineCache()
    store(cache, make_key(), b"plan")
    (cache.folder / f"{'f' * 64}.json").write_text("{")
    text = "\n".join(doctor_gpu.gpu_lines(doctor_gpu.examine_gpu()))
    assert "CUDA         Fake RTX 3060, SM 86, 28 multiprocessors, memory of its own; driver" in text
    assert "(CUDA 12.6), runtime 12.6" in text
    assert "tensorrt     10.3.0" in text
    assert "tensorrt-rtx 1.7.1.116" in text
    assert "CPU" in text
    assert f"engine cache 1 engines, 1 damaged, 0 MiB, {cache.folder}" in text
    assert "fp16: built, not run, tensorrt 10.3.0, Fake Orin SM 87, 0 MiB, built here" in text


def test_without_a_gpu_its_runtimes_are_not_usable_and_say_why(gpu: FakeGpu) -> None:
    gpu.be("none")
    report = doctor.examine()
    states = {state.name: state for state in report.runtimes}
    for name in ("tensorrt+llamacpp", "tensorrt-rtx+llamacpp"):
        assert not states[name].usable
        assert states[name].reason.startswith("there is no NVIDIA driver")
        assert "Install it" not in states[name].reason, "one advice: that of `mend`"
    assert not states["onnxruntime-cuda+llamacpp"].usable
    assert states["onnxruntime+llamacpp"].usable
    assert not engine_folder().exists(), "looking makes nothing"


def test_with_a_gpu_its_runtimes_are_usable_and_called_built_not_run(gpu: FakeGpu) -> None:
    report = doctor.examine()
    state = next(state for state in report.runtimes if state.name == "tensorrt+llamacpp")
    assert state.usable
    assert any(line.endswith("usable (built, not run)") for line in doctor.lines(report))


def test_a_wheel_without_cuda_is_told_from_a_missing_gpu(gpu: FakeGpu) -> None:
    report = replace(doctor_gpu.examine_gpu(), providers=("CPU",))
    state = doctor._examine_runtime("onnxruntime-cuda+llamacpp", report, machine(None))
    assert state.reason == "the installed onnxruntime has no CUDA"
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && " in state.mend
    assert state.mend.endswith("pip install 'onnxruntime-gpu>=1.20'")
    report = replace(report, providers=("CUDA", "CPU"))
    assert doctor._examine_runtime("onnxruntime-cuda+llamacpp", report, machine(None)).usable


@pytest.mark.parametrize(
    ("jetpack", "tensorrt", "problem"),
    [
        ("6.2", "10.3.0.30", ""),
        ("7.2", "10.16.2.10", "TensorRT 10.3.0 is installed, JetPack 7.2 has 10.16.2.10"),
        ("6.0", "8.6.2", ""),  # said of the board, and not twice
        (None, None, ""),
    ],
)
def test_a_tensorrt_that_is_not_the_jetpacks_is_found(
    gpu: FakeGpu, jetpack: str | None, tensorrt: str | None, problem: str
) -> None:
    jetson = Jetson(model="Orin Nano", l4t="36.4.3", jetpack=jetpack, power_mode=None, tensorrt=tensorrt)
    found = list(doctor_gpu.gpu_problems(doctor_gpu.examine_gpu(), machine(jetson)))
    assert [one[: len(problem)] for one in found] == [problem] * bool(problem)


def test_engines_of_another_tensorrt_are_named(gpu: FakeGpu) -> None:
    cache = EngineCache()
    store(cache, make_key(), b"plan")
    report = doctor_gpu.examine_gpu()
    assert list(doctor_gpu.gpu_problems(report, machine(None))) == []
    newer = replace(report, libraries={**report.libraries, "tensorrt": "10.16.2"})
    [problem] = doctor_gpu.gpu_problems(newer, machine(None))
    assert problem.startswith("there are engines of tensorrt 10.3.0, which is not what is installed")


def test_a_disk_too_full_for_engines_is_said_with_what_a_bundle_needs(gpu: FakeGpu) -> None:
    report = doctor_gpu.examine_gpu()
    assert report.cache.free_bytes is not None
    full = replace(report, cache=replace(report.cache, free_bytes=3 << 30))
    assert list(doctor_gpu.gpu_problems(full, machine(None))) == []
    [problem] = doctor_gpu.gpu_problems(full, machine(None), largest_bytes=2 << 30)
    assert "3.0 GiB are free for engines" in problem
    assert "a build wants 4.0: " in problem


def test_a_cache_that_others_may_enter_is_a_problem(gpu: FakeGpu) -> None:
    EngineCache().folder.chmod(0o755)
    report = doctor_gpu.examine_gpu()
    [problem] = doctor_gpu.gpu_problems(report, machine(None))
    assert "chmod 700" in problem


def test_a_gpu_that_cuda_does_not_find_is_a_problem(gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.be("Fake RTX,86,28,0,11040")
    [problem] = doctor_gpu.gpu_problems(doctor_gpu.examine_gpu(), machine(None, ("RTX 3060, 470.1",)))
    assert problem.startswith(
        "nvidia-smi shows RTX 3060, 470.1, but CUDA does not start: the NVIDIA driver is too"
    )
