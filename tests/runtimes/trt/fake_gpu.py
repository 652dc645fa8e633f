"""A CUDA runtime and a TensorRT without a GPU, for tests: `fake_cudart.c` and `fake_tensorrt.py`."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.runtimes.trt import fake_tensorrt
from tinyllava_edge.runtimes.trt.binding import open_tensorrt
from tinyllava_edge.runtimes.trt.cudart_places import LIBRARY_VARIABLE

FAKE_MODULES = Path(__file__).parent / "fake_modules"
ROOT = Path(__file__).parents[3]
SOURCE = Path(__file__).parent / "fake_cudart.c"
ORIN = "Fake Orin,87,8,1,12060"
RTX_3060 = "Fake RTX 3060,86,28,0,12060"


@cache
def library_path() -> str:
    """The compiled library; its folder stays until the machine cleans /tmp."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler for the fake CUDA runtime")
    path = Path(mkdtemp(prefix="fake-cudart-")) / "libcudart.so.12"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(path), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return str(path)


class FakeGpu:
    """The fake device, as a test sets it up and looks at it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._library = ctypes.CDLL(library_path())
        self._library.fake_is_device_memory.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._library.fake_is_capturing.argtypes = (ctypes.c_void_p,)
        self._library.fake_break_capture.argtypes = (ctypes.c_void_p,)
        patch.setenv(LIBRARY_VARIABLE, library_path())
        patch.delenv("FAKE_CUDART_FAIL", raising=False)
        self.be(ORIN)
        patch.syspath_prepend(FAKE_MODULES)
        patch.setenv("PYTHONPATH", f"{FAKE_MODULES}:{ROOT}:{os.environ.get('PYTHONPATH', '')}")
        for name in ("tensorrt", "tensorrt_rtx"):
            patch.delitem(sys.modules, name, raising=False)
        self.be_version("10.3.0")

    def be_version(self, version: str) -> None:
        """Which TensorRT is installed."""
        self._patch.setattr(fake_tensorrt, "__version__", version)
        self._patch.setenv("FAKE_TENSORRT_VERSION", version)
        self._patch.delitem(sys.modules, "tensorrt", raising=False)
        open_tensorrt.cache_clear()

    def remove(self) -> None:
        """Forget the fake libraries, so that the next test meets the real ones or none."""
        for name in ("tensorrt", "tensorrt_rtx"):
            sys.modules.pop(name, None)
        open_tensorrt.cache_clear()

    def spoil(self, **faults: str) -> None:
        """What goes wrong with the engine of a graph, by its name; see `fake_tensorrt.py`."""
        self._patch.setenv("FAKE_TENSORRT_FAULTS", json.dumps(faults))

    def be(self, gpu: str) -> None:
        """Which GPU it is: "name,sm,multiprocessors,integrated,driver", more behind ";", or "none"."""
        self._patch.setenv("FAKE_CUDART_GPU", gpu)

    def fail(self, function: str, code: int, from_call: int = 1) -> None:
        """Let a function fail from a call on."""
        self._patch.setenv("FAKE_CUDART_FAIL", f"{function}:{code}:{from_call}")

    def recover(self) -> None:
        """Let nothing fail any more."""
        self._patch.delenv("FAKE_CUDART_FAIL", raising=False)

    def compute_slower_when_mapped(self, ticks: int) -> None:
        """How much longer a run takes that reads the host's memory in place."""
        self._patch.setenv("FAKE_TENSORRT_MAPPED", str(ticks))

    @property
    def contexts(self) -> int:
        """How often this process made a device current, which makes a CUDA context."""
        return int(self._library.fake_contexts())

    @property
    def current(self) -> int:
        """The calling thread's device."""
        return int(self._library.fake_current())

    @property
    def live(self) -> int:
        """Allocations, streams, events and graphs that were not freed."""
        return int(self._library.fake_live())
