"""What `auto` takes where nothing was built, and says; with engines: tests/runtimes/trt/test_choose.py."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.runtimes import bundles
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BackendError, BundleError, MissingExtraError, UsageError
from tinyllava_edge.parity_files import parity_path, write_parity
from tinyllava_edge.runtimes import auto, registry
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.model import open_bundle
from tinyllava_edge.runtimes.trt.cache import engine_folder

CPU, CUDA = "onnxruntime+llamacpp", "onnxruntime-cuda+llamacpp"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bundles.write_bundle(tmp_path / "bundle")


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "has_nvidia_gpu", lambda: True)


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The runtimes that open; the others do not work here. Each is the one for the CPU in truth."""
    working: set[str] = set()
    really = registry.open_backends

    def opened(runtime: str, bundle: Bundle, options: BackendOptions) -> Any:
        if runtime not in working:
            raise BackendError(f"no {runtime} today")
        return really(CPU, bundle, options)

    monkeypatch.setattr(auto, "open_backends", opened)
    return working


def test_it_is_the_default_and_takes_the_cpu_where_there_is_nothing_else(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "has_nvidia_gpu", lambda: False)
    with open_bundle(bundle, threads=1) as model:
        assert (model.runtime, model.runtime_reason) == (CPU, "no NVIDIA GPU is here")
    with open_bundle(bundle, runtime=CPU, threads=1) as model:
        assert (model.runtime, model.runtime_reason) == (CPU, "")


def test_a_gpu_is_taken_before_the_cpu_and_what_was_not_verified_is_said(
    bundle: Bundle, opens: set[str], with_gpu: None
) -> None:
    opens |= {CPU, CUDA}
    with open_bundle(bundle, threads=1) as model:
        assert model.runtime == CUDA
        assert f"tinyllava-edge verify {bundle.root} --runtime {CUDA}" in model.runtime_reason
    write_parity(bundle, CUDA, {"passed": True})
    with open_bundle(bundle, threads=1) as model:
        assert model.runtime == CUDA
        assert "verify" not in model.runtime_reason
    write_parity(bundle, CUDA, {"passed": False, "verdict": "tower differs"})
    with open_bundle(bundle, threads=1) as model:
        assert (model.runtime, model.runtime_reason) == (CPU, f"{CUDA} failed verify (tower differs)")
    parity_path(bundle, CUDA).write_text("{")
    assert [one.runtime for one in auto.candidates(bundle, BackendOptions())] == [CUDA, CPU]


def test_each_retreat_is_said_with_its_reason(bundle: Bundle, opens: set[str], with_gpu: None) -> None:
    opens.add(CPU)
    with open_bundle(bundle, threads=1) as model:
        assert model.runtime == CPU
        assert model.runtime_reason == f"{CUDA} does not open (no {CUDA} today); the CPU is what is left"
    opens.clear()
    with pytest.raises(
        BackendError, match=rf"{CUDA} does not open .*; {CPU} does not open".replace("+", r"\+")
    ):
        open_bundle(bundle)


def test_this_onnxruntime_without_cuda_says_what_has_it(bundle: Bundle, with_gpu: None) -> None:
    with open_bundle(bundle, threads=1) as model:
        if model.runtime == CUDA:
            pytest.skip("this onnxruntime has CUDA, and there is a GPU")
        assert "has no CUDA. Put the one that has in its place: " in model.runtime_reason


def test_what_backends_have_to_say_is_said_of_a_named_runtime_too(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyllava_edge.runtimes.ort import OnnxVision

    monkeypatch.setattr(OnnxVision, "note", "built in another power mode", raising=False)
    monkeypatch.setattr(auto, "has_nvidia_gpu", lambda: False)
    for runtime, reason in ((CPU, ""), ("auto", "no NVIDIA GPU is here; ")):
        with open_bundle(bundle, runtime=runtime, threads=1) as model:
            assert model.runtime_reason == f"{reason}built in another power mode"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"vision": "fp8"}, BundleError),
        ({"checkpoint": "somewhere"}, UsageError),
        ({"gpu_layers": 3}, UsageError),
    ],
)
def test_a_wrong_option_is_an_error_and_no_reason_to_go_on(
    bundle: Bundle, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        open_bundle(bundle, **options)


def test_a_missing_package_is_named_and_torch_is_not_in_its_place(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, with_gpu: None
) -> None:
    hidden = "tinyllava_edge.runtimes.registry.find_spec"
    monkeypatch.setattr(hidden, lambda name: None if name == "llama_cpp" else find_spec(name))
    with pytest.raises(MissingExtraError, match="needs the package llama_cpp"):
        open_bundle(bundle)
    names = [one.runtime for one in auto.candidates(bundle, BackendOptions(checkpoint=Path("somewhere")))]
    assert names == ["torch" if find_spec("torch") else CPU]


def test_a_language_model_that_failed_is_no_reason_to_leave_the_gpu(
    bundle: Bundle, opens: set[str], with_gpu: None
) -> None:
    opens |= {CPU, CUDA}
    failed = {"passed": False, "verdict": "q4 differs", "first_failure": {"stage": "teacher_forced"}}
    write_parity(bundle, CUDA, failed)
    with open_bundle(bundle, threads=1) as model:
        assert model.runtime == CUDA
        assert model.runtime_reason.endswith("; verify: q4 differs")


@pytest.mark.skipif(os.name == "nt", reason="no modes here")
def test_an_engine_cache_that_is_not_to_be_trusted_ends_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(auto, "has_nvidia_gpu", lambda: False)
    engine_folder().mkdir(parents=True)
    engine_folder().chmod(0o755)
    with open_bundle(bundle, threads=1) as model:
        assert model.runtime == CPU
        assert "chmod 700" in model.runtime_reason


def test_a_runtime_of_engines_means_the_variant_that_has_one(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = auto.Candidate("tensorrt+llamacpp", "fp16", "chosen by build here")
    monkeypatch.setattr(auto, "_built_here", lambda bundle: built)
    assert auto.settle_runtime("tensorrt+llamacpp", bundle) == auto.settle_runtime("auto", bundle) == built
    for other in ("tensorrt-rtx+llamacpp", CUDA, CPU):
        assert auto.settle_runtime(other, bundle) == auto.Candidate(other, None, "")
