"""What `doctor` makes of machines and packages other than these."""

from importlib.metadata import PackageNotFoundError

import pytest

from tinyllava_edge.device import Cpu, Jetson, Machine, Memory
from tinyllava_edge.runtimes import doctor
from tinyllava_edge.runtimes.doctor_gpu import CacheState, GpuReport


def install_only(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make pip's records say that only these are installed."""

    def version(package: str) -> str:
        if package not in packages:
            raise PackageNotFoundError(package)
        return "1.2.3"

    monkeypatch.setattr("tinyllava_edge.runtimes.doctor.version", version)


def test_two_onnxruntimes_that_overwrite_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    install_only(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    [problem] = doctor.examine().problems
    assert problem.endswith("pip install 'onnxruntime-gpu>=1.20'")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && " in problem


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime-gpu"])
def test_one_onnxruntime_is_no_problem(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    install_only(monkeypatch, package)
    assert doctor.examine().problems == ()


def test_a_runtime_whose_package_is_missing_has_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tinyllava_edge.runtimes.registry.find_spec", lambda _: None)
    states = {state.name: state for state in doctor.examine().runtimes}
    assert not states["onnxruntime+llamacpp"].usable
    assert states["onnxruntime+llamacpp"].mend.endswith("pip install 'onnxruntime>=1.20'")
    assert "pip install 'torch>=2.10' 'transformers>=4.57' " in states["torch"].mend
    assert states["scripted"].usable


def test_a_jetson_and_a_gpu_have_their_lines() -> None:
    cpu = Cpu(
        model="Arm Cortex-A78AE",
        architecture="aarch64",
        logical_cpus=6,
        physical_cores=6,
        quota=2.5,
        usable_cores=2,
        features=(),
    )
    machine = Machine(
        system="Linux 5.15",
        cpu=cpu,
        memory=Memory(total_bytes=8 << 30, available_bytes=6 << 30),
        gpus=("Orin, 540.4.0",),
        jetson=Jetson(model="Jetson Orin Nano", l4t="36.4.3", jetpack="6.2", power_mode=None),
    )
    report = doctor.Report(
        python="3.10",
        packages={"torch": None},
        machine=machine,
        gpu=GpuReport(
            gpu=None,
            problem="no driver",
            driver=None,
            libraries={},
            providers=(),
            cache=CacheState(folder="engines"),
        ),
        runtimes=(),
        problems=(),
    )
    text = "\n".join(doctor.lines(report))
    assert "Jetson       Jetson Orin Nano, L4T 36.4.3, JetPack 6.2, power mode unknown" in text
    assert "GPU          Orin, 540.4.0" in text
    assert "CUDA         none: no driver" in text
    assert "2 of 6 (6 CPUs, quota 2.5 CPUs)" in text
    assert "6.0 of 8.0 GiB available" in text
    assert "torch            -" in text


def test_a_package_that_does_not_load_is_told_from_one_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(package: str) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr("tinyllava_edge.runtimes.doctor.import_module", fail)
    [state] = [state for state in doctor.examine().runtimes if state.name == "onnxruntime+llamacpp"]
    assert state.reason == "onnxruntime does not load (libgomp.so.1: cannot open shared object file)"
    assert state.mend.endswith("pip install --force-reinstall --no-deps 'onnxruntime>=1.20'")
