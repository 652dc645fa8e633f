"""What `doctor` makes of machines and packages other than these."""

import pytest

from tinyllava_edge.runtimes import doctor


def install_only(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make pip's records say that only these are installed."""

    def version(package: str, _: object = None) -> str | None:
        return "1.2.3" if package in packages else None

    monkeypatch.setattr("tinyllava_edge.runtimes.doctor.installed_version", version)


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


def test_a_package_that_does_not_load_is_told_from_one_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(package: str) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr("tinyllava_edge.runtimes.doctor.import_module", fail)
    [state] = [state for state in doctor.examine().runtimes if state.name == "onnxruntime+llamacpp"]
    assert state.reason == "onnxruntime does not load (libgomp.so.1: cannot open shared object file)"
    assert state.mend.endswith("pip install --force-reinstall --no-deps 'onnxruntime>=1.20'")
