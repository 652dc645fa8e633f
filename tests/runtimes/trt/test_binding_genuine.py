"""NVIDIA's own Python bindings, of versions on boards and PCs, over stub libraries: what we do without a GPU.

The bindings come from PyPI (`tensorrt-cu12-bindings`, about 1 MB each); their libraries do not, so a C stub
with the symbols they need is compiled (docs/sources/tensorrt.md#bindings-without-the-libraries).
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.runtimes.trt.names import CONDITIONAL, ROOT, collect_all

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="the bindings are Linux wheels"),
]
VERSIONS = ("10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")
LOG_SLOT = {"10": 0, "11": 4}
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
# Run with the bindings on the path: our binding module opens the library and tells what it finds.
PROBE = """
import json, sys
from tinyllava_edge.errors import TinyLlavaEdgeError
from tinyllava_edge.runtimes.trt.builder import build_engine
from tinyllava_edge.runtimes.trt.options import EngineOptions
from tinyllava_edge.runtimes.trt.binding import open_tensorrt
from pathlib import Path

def error_of(action):
    try:
        action()
    except TinyLlavaEdgeError as error:
        return [type(error).__name__, str(error), list(getattr(error, "messages", ()))]
    return None

result = {"open": error_of(lambda: open_tensorrt("tensorrt"))}
if result["open"] is None:
    binding = open_tensorrt("tensorrt")
    def reached(name):
        value = binding.trt
        for part in name.split("."):
            value = getattr(value, part, None)
        return value is not None
    result["version"] = binding.version_text
    result["missing"] = [name for name in json.loads(sys.argv[1]) if not reached(name)]
    result["builder"] = error_of(binding.create_builder)
    result["runtime"] = error_of(binding.create_runtime)
    result["build"] = error_of(lambda: build_engine(Path("none.onnx"), EngineOptions()))
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bindings")


def probe(folder: Path, version: str, *, libraries: bool = True) -> dict[str, Any]:
    """What our code says over the bindings of a version."""
    site = folder / version
    if not site.exists():
        requirement = f"tensorrt-cu12-bindings=={version}"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(site), requirement]
        subprocess.run(command, check=True)
        (wheel,) = site.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(site)
        # The package `tensorrt` is these two lines, and downloads the libraries when it is installed.
        (site / "tensorrt").mkdir()
        lines = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
        (site / "tensorrt" / "__init__.py").write_text(lines)
        _compile_stubs(site / "lib", version.split(".")[0])
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    if libraries:
        environment["LD_LIBRARY_PATH"] = str(site / "lib")
    names = json.dumps(sorted(name for name in collect_all().names if name not in CONDITIONAL))
    command = [sys.executable, "-W", "ignore", "-c", PROBE, names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _compile_stubs(folder: Path, major: str) -> None:
    folder.mkdir()
    source = Path(__file__).with_name("stub_libraries.c")
    for library in LIBRARIES:
        name = f"lib{library}.so.{major}"
        flags = [
            "-shared",
            "-fPIC",
            f"-DLOG_SLOT={LOG_SLOT[major]}",
            f"-Wl,-soname,{name}",
            "-o",
            str(folder / name),
        ]
        subprocess.run(["cc", *flags, str(source)], check=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_installed_but_no_gpu(folder: Path, version: str) -> None:
    result = probe(folder, version)
    assert result["open"] is None
    assert result["version"] == version
    assert result["missing"] == []
    for action in ("builder", "runtime", "build"):
        name, message, messages = result[action]
        assert name == "NoGpuError"
        assert f"TensorRT {version} is installed, but finds no usable GPU" in message
        assert "there is no NVIDIA driver, or it is older than this CUDA needs" in message
        assert "Install or update the NVIDIA driver" in message
        # The cause came from the library, through the bindings, into our logger.
        assert messages == [
            "CUDA initialization failure with error: 35. Please check your CUDA installation."
        ]


def test_bindings_without_their_libraries(folder: Path) -> None:
    result = probe(folder, "10.3.0", libraries=False)
    name, message, _ = result["open"]
    assert name == "TensorRTError"
    assert "tensorrt is installed, but does not load: lib" in message
    assert "cannot open shared object file" in message


def test_a_version_that_is_too_old(folder: Path) -> None:
    result = probe(folder, "10.0.1")
    name, message, _ = result["open"]
    assert name == "TensorRTVersionError"
    assert "tensorrt 10.0.1 is installed" in message
    assert "supported are 10.3 to 11.x" in message
