"""What a step may need of the machine; each probe says what is missing, or nothing where it is there."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import tinyllava_edge
from tinyllava_edge.device import has_nvidia_gpu
from tinyllava_edge.errors import UsageError
from tinyllava_edge.jetson import read_jetson

REQUIRE = "TINYLLAVA_EDGE_REQUIRE"
CHECKOUT = Path(tinyllava_edge.__file__).resolve().parents[1]


def _package(name: str, package: str) -> Callable[[], str]:
    return lambda: "" if find_spec(name) else f"{package} is not installed"


def _onnxruntime_cuda() -> str:
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed"
    import onnxruntime

    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return "" if has_cuda else "the installed onnxruntime has no CUDA"


# The first five are those of TINYLLAVA_EDGE_REQUIRE; tests/conftest.py skips by them.
PROBES: dict[str, Callable[[], str]] = {
    "cuda": lambda: "" if has_nvidia_gpu() else "no NVIDIA GPU is here",
    "jetson": lambda: "" if read_jetson() else "this is no Jetson",
    "tensorrt": _package("tensorrt", "tensorrt"),
    "tensorrt-rtx": _package("tensorrt_rtx", "tensorrt-rtx"),
    "onnxruntime-cuda": _onnxruntime_cuda,
    "camera": lambda: "" if Path("/dev/video0").exists() else "there is no /dev/video0",
    "docker": lambda: "" if shutil.which("docker") else "docker is not installed",
    "nvpmodel": lambda: "" if shutil.which("nvpmodel") else "there is no nvpmodel",
    "tests": lambda: "" if (CHECKOUT / "tests/device").is_dir() else "only a checkout has the tests",
}
REQUIRABLE = tuple(PROBES)[:5]


def missing(required: str) -> dict[str, str]:
    """Of what TINYLLAVA_EDGE_REQUIRE names, what is not here, and why.

    Raises:
        UsageError: it names something else.
    """
    names = list(filter(None, required.split(",")))
    for name in names:
        if name not in REQUIRABLE:
            raise UsageError(
                f"{REQUIRE}: expected {', '.join(REQUIRABLE)}, separated by commas; found {name}."
            )
    return {name: reason for name in names if (reason := PROBES[name]())}
