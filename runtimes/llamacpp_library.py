"""llama.cpp's shared library, loaded once: its bindings, its log, and the GPUs that it sees.

llama.cpp computes with OpenMP, so the library is loaded only after `threads.limit_openmp_spin`.
"""

import ctypes
import os
import re
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any

from tinyllava_edge.errors import BackendError
from tinyllava_edge.llamacpp_backends import load_backends

from .llamacpp_build import load_mend
from .threads import limit_openmp_spin

_GPU_SM = re.compile(rb"compute capability (\d+\.\d)")
_GPU, _INTEGRATED = 1, 2  # ggml_backend_dev_type


@dataclass(frozen=True, kw_only=True)
class Library:
    """What was loaded.

    Attributes:
        bindings: llama-cpp-python's module.
        log: what the library says.
        build: what it was compiled for, in its own words.
        gpus: descriptions of the GPUs that it sees, in its own order.
        blind: why a CUDA build sees none; "" for others.
        is_not_empty: C's `strlen` as a `ggml_abort_callback`: true of a string that has something in it.
            llama.cpp calls it for every operation of a graph, where a function of Python's would wait for its
            lock (docs/sources/llamacpp.md#ending-an-evaluation).
    """

    bindings: Any
    log: "Log"
    build: str
    gpus: tuple[str, ...]
    blind: str
    is_not_empty: Any


class Log:
    """Collects llama.cpp's warnings and errors for our own messages; nothing is printed."""

    _WARNING, _ERROR, _CONTINUED = 3, 4, 5  # ggml_log_level

    def __init__(self, bindings: Any) -> None:
        self._lines: deque[str] = deque(maxlen=8)
        self._keeping = False
        self.gpu_sm = ""  # of the first GPU, which llama.cpp says once, when it first looks
        self._set = bindings.llama_log_set
        self._callback = bindings.llama_log_callback(self.receive)  # the library keeps only its address

    def attach(self) -> None:
        """Take over the process-wide callback, which another user of the library may have set."""
        self._set(self._callback, None)

    def clear(self) -> None:
        """Forget the lines so far."""
        self._lines.clear()

    def said(self) -> str:
        """The lines as the end of an error message; they are then forgotten."""
        text = " | ".join(line.strip() for line in self._lines if line.strip())
        self.clear()
        return f" llama.cpp: {text}" if text else ""

    def receive(self, level: int, text: bytes, _: object = None) -> None:
        """A piece of a line, as `ggml_log_callback` has it."""
        if not self.gpu_sm and (found := _GPU_SM.search(text)):
            self.gpu_sm = found[1].decode()
        if level != self._CONTINUED:
            self._keeping = level in (self._WARNING, self._ERROR)
            if self._keeping:
                self._lines.append("")
        if self._keeping and self._lines:
            self._lines[-1] += text.decode("utf-8", errors="replace")


@cache
def load_library() -> Library:
    """Import the bindings once, after the OpenMP policy is set.

    Raises:
        BackendError: the shared library does not load, or has no backend for this processor.
    """
    limit_openmp_spin()
    try:
        import llama_cpp  # here and not above: its OpenMP reads the environment when it is loaded
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"llama-cpp-python does not load ({error}). {load_mend(str(error))}") from None
    log = Log(llama_cpp)
    log.attach()
    load_backends(llama_cpp)
    llama_cpp.llama_backend_init()
    build = llama_cpp.llama_print_system_info().decode()
    gpus = _read_gpus(llama_cpp)
    said = log.said()
    blind = f"llama.cpp is a CUDA build and sees no GPU.{said}" if "CUDA : " in build and not gpus else ""
    # A library's own handle finds what it is linked with, but on Windows.
    strlen = (llama_cpp.llama_cpp._lib if os.name == "posix" else ctypes.CDLL("msvcrt")).strlen
    looks = ctypes.cast(strlen, llama_cpp.ggml_abort_callback)
    return Library(bindings=llama_cpp, log=log, build=build, gpus=gpus, blind=blind, is_not_empty=looks)


def _read_gpus(bindings: Any) -> tuple[str, ...]:
    """Descriptions of the devices that a model may go to: integrated GPUs only where there is no other."""
    if not bindings.llama_supports_gpu_offload():  # in some versions true of a build without a device
        return ()
    from llama_cpp._ctypes_extensions import load_shared_library

    folder = bindings.llama_cpp._base_path
    ggml, base = (load_shared_library(name, folder) for name in ("ggml", "ggml-base"))
    device, kind, describe = (
        ggml.ggml_backend_dev_get,
        base.ggml_backend_dev_type,
        base.ggml_backend_dev_description,
    )
    device.restype, device.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    kind.argtypes = describe.argtypes = [ctypes.c_void_p]
    describe.restype = ctypes.c_char_p
    devices = [device(number) for number in range(ggml.ggml_backend_dev_count())]
    gpus, integrated = ([one for one in devices if kind(one) == wanted] for wanted in (_GPU, _INTEGRATED))
    return tuple(describe(one).decode(errors="replace") for one in gpus or integrated)
