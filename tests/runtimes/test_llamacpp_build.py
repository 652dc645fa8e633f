"""A llama.cpp that another machine built is found before it is used."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyllava_edge.device import read_cpu
from tinyllava_edge.install import llamacpp_line
from tinyllava_edge.runtimes import doctor, llamacpp_build
from tinyllava_edge.runtimes.llamacpp_build import build_fault, load_mend

XEON = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | AVX512 = 1 | AVX512_BF16 = 1 | AMX_INT8 = 1 | OPENMP = 1 |"


@pytest.fixture(autouse=True)
def ask_anew() -> Iterator[None]:
    llamacpp_build._ask_library.cache_clear()
    yield
    llamacpp_build._ask_library.cache_clear()


def _install(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put another llama_cpp before the installed one, for processes that are started from now on."""
    (folder / "llama_cpp.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_the_installed_build_suits_this_processor_and_no_lesser_one() -> None:
    features = read_cpu().features
    if not features:
        pytest.skip("the kernel does not say what this processor has")
    assert build_fault(features) == ""
    assert build_fault(["sse2"]).endswith("which this processor does not have")


def test_instructions_that_the_processor_lacks_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, monkeypatch, f"def llama_print_system_info(): return {XEON.encode()!r}")
    assert build_fault(["avx", "avx2", "fma"]) == (
        "llama.cpp was built for amx_int8, avx512_bf16, avx512f, which this processor does not have"
    )
    assert build_fault(["avx", "avx2", "avx512f", "avx512_bf16", "amx_int8"]) == ""
    assert build_fault([]) == ""


def test_doctor_survives_a_library_that_dies_of_an_illegal_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    states = {state.name: state for state in doctor.examine().runtimes}
    state = states["onnxruntime+llamacpp"]
    assert not state.usable
    assert "illegal instruction" in state.reason
    assert state.mend == llamacpp_line()
    assert "scripted" not in states, "it is for tests"


OLD = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | BMI2 = 1 | OPENMP = 1 | REPACK = 1 |"
ZEN4 = ("avx", "avx2", "fma", "f16c", "bmi2", "avx512f", "avx512_vnni", "avx512_bf16")
ALL = "python -m pip install with -DGGML_NATIVE=OFF -DGGML_CPU_ALL_VARIANTS=ON"


@pytest.mark.parametrize(
    ("said", "features", "unused"),
    [
        (OLD, ZEN4, "avx512f, avx512_vnni, avx512_bf16"),
        (OLD, ("avx", "avx2", "avx_vnni"), "avx_vnni"),
        (OLD, ("avx", "avx2", "fma"), ""),
        (XEON, (*ZEN4, "amx_int8", "avx_vnni"), "avx512_vnni"),  # which does what avx_vnni does
        ("CPU : NEON = 1 | FP16_VA = 1 |", ("asimd", "asimdhp", "asimddp", "i8mm"), "asimddp, i8mm"),
        ("CUDA : ARCHS = 890 | CPU : AVX2 = 1 |", ZEN4, ""),
    ],
)
def test_what_the_processor_has_and_the_build_lacks_is_said_with_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, features: tuple[str, ...], unused: str
) -> None:
    _install(tmp_path, monkeypatch, f"def llama_print_system_info(): return {said.encode()!r}")
    monkeypatch.setattr(llamacpp_build, "llamacpp_line", lambda: ALL)
    found = f"llama.cpp is built without {unused}, which this processor has: {ALL}" if unused else ""
    assert llamacpp_build.unused_line(features) == found
    monkeypatch.setattr(
        llamacpp_build, "llamacpp_line", lambda: "pip with -DGGML_NATIVE=OFF"
    )  # an old compiler
    assert llamacpp_build.unused_line(features) == ""


def test_a_build_for_every_processor_says_which_of_its_backends_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = "load_backend: loaded CPU backend from /env/llama_cpp/lib/libggml-cpu-haswell.so"
    code = f"import sys; sys.stderr.write({log!r})\ndef llama_print_system_info(): return {OLD.encode()!r}"
    _install(tmp_path, monkeypatch, code)
    assert llamacpp_build.cpu_variant() == "haswell"
    assert llamacpp_build.unused_line(ZEN4) == ""
    report = doctor.examine()
    assert "llama.cpp    takes its CPU backend haswell" in [*doctor.lines(report)]


ORIN = "CUDA : ARCHS = 870 | NO_VMM = 1 | CPU : NEON = 1 | OPENMP = 1 |"


def test_a_cpu_build_beside_a_gpu_is_said_with_the_line_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not llamacpp_build.lacks_cuda(), "there is no GPU here"
    monkeypatch.setattr(llamacpp_build, "has_nvidia_gpu", lambda: True)
    [problem] = [text for text in doctor.examine().problems if text.startswith("llama.cpp")]
    assert problem == f"llama.cpp: CPU build, a GPU is there: {llamacpp_line()}"


def test_a_cuda_build_is_told_from_one_for_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp_build, "has_nvidia_gpu", lambda: True)
    _install(tmp_path, monkeypatch, f"def llama_print_system_info(): return {ORIN.encode()!r}")
    assert not llamacpp_build.lacks_cuda()


@pytest.mark.parametrize(
    ("said", "mend"),
    [  # as a genuine CUDA build said it here, and one that links the driver
        ("libcublas.so.13: cannot open shared object file", "libcublas.so.13 is not found: put its folder"),
        ("libcuda.so.1: cannot open shared object file", "libcuda.so.1 is not found: NVIDIA's driver brings"),
        ("undefined symbol: ggml_abort", "Install it again: "),
    ],
)
def test_what_a_build_that_does_not_load_lacks_is_named(said: str, mend: str) -> None:
    found = load_mend(f"Failed to load shared library 'libllama.so': {said}")
    assert mend in found
    assert ("install --cpu --fresh" in found) == ("cuda" in said or "cublas" in said)
