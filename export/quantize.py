"""GGUF -> quantized GGUF, by llama.cpp's own quantizer.

llama.cpp mixes types within one file, and where a row is not a multiple of a type's block it silently takes
another type; `parity.py` reads back what it made and reports it.
"""

import ctypes
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import ExportError
from tinyllava_edge.llamacpp_backends import load_backends

from .language_gguf import OnProgress, no_progress

_COUNT = re.compile(r"\[ *(\d+)/ *(\d+)\]")  # in front of each tensor in llama.cpp's log


def quantize_gguf(
    source: Path,
    target: Path,
    name: str,
    *,
    imatrix: Mapping[str, npt.NDArray[np.float32]] | None = None,
    types: Mapping[str, str] | None = None,
    threads: int = 0,
    on_progress: OnProgress = no_progress,
) -> None:
    """Quantize a float GGUF file.

    Args:
        source: f32, or f16 where the checkpoint is float16.
        target: written.
        name: one of `precisions.LANGUAGE_TYPES`.
        imatrix: how much an error in each column of a tensor weighs, by the tensor's name: [columns].
        types: of tensors that are not to have the type that llama.cpp would give them, by their names.
        threads: 0 for as many as the machine has; the result does not depend on it.
        on_progress: called with the tensors begun, and all that there are.

    Raises:
        ExportError: llama.cpp refused; its own last words are in the message.
    """
    load_backends(llama_cpp)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name.upper()}")
    parameters.nthread = threads
    _give(parameters, "imatrix", _weights(imatrix or {}))
    _give(parameters, "tt_overrides", _overrides(types or {}))
    with _captured_log(on_progress) as log:
        result = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(parameters)
        )
    if result != 0:
        words = " ".join("".join(log).split())[-300:]
        raise ExportError(f"{target}: llama.cpp could not quantize to {name}: {words}")


def check_recipes() -> None:
    """Find a binding that is too old for `imatrix` and `types` before any work is done.

    Raises:
        ExportError: it takes a C++ object where newer ones take arrays.
    """
    if not hasattr(llama_cpp, "llama_model_imatrix_data"):
        raise ExportError(
            f"llama-cpp-python {llama_cpp.__version__} cannot be given an importance matrix or types of "
            "tensors; 0.3.36 can. Install it: tinyllava-edge doctor has the line."
        )


def _weights(imatrix: Mapping[str, npt.NDArray[np.float32]]) -> list[Any]:
    pointer = ctypes.POINTER(ctypes.c_float)
    return [
        llama_cpp.llama_model_imatrix_data(name.encode(), values.ctypes.data_as(pointer), len(values))
        for name, values in imatrix.items()
    ]


def _overrides(types: Mapping[str, str]) -> list[Any]:
    """Each for one tensor: the patterns are C++'s regular expressions, which Python's need not be."""
    return [
        llama_cpp.llama_model_tensor_override(
            f"^{re.escape(name)}$".encode(), gguf.GGMLQuantizationType[kind.upper()]
        )
        for name, kind in types.items()
    ]


def _give(parameters: Any, name: str, items: list[Any]) -> None:
    """An array that ends with an empty item, as C has it; ctypes keeps it alive."""
    if items:
        setattr(parameters, name, (type(items[0]) * (len(items) + 1))(*items))


def block_size(name: str) -> int:
    """Values that a type quantizes together; a row must be a multiple of it."""
    if name in ("f32", "f16", "bf16"):
        return 1
    is_super_block = "_k" in name or name.startswith("tq") or (name.startswith("iq") and name != "iq4_nl")
    return 256 if is_super_block else 32


@contextmanager
def _captured_log(on_progress: OnProgress) -> Iterator[list[str]]:
    """Collect llama.cpp's log instead of printing it; it has a count of tensors in it."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def collect(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        lines.append(text.decode("utf-8", errors="replace"))
        if count := _COUNT.match(lines[-1]):
            on_progress(int(count[1]), int(count[2]))

    before, before_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(before_data))
    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(before, before_data)
