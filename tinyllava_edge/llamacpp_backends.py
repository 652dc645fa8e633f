"""llama.cpp's backends, where they are libraries of their own: one for each kind of processor.

Such a build fits every processor of its architecture, and computes nothing before one is loaded. llama.cpp
would look for them beside Python's program and in the current directory, where anybody may have put one; so
they are loaded here, from the package's folder (docs/sources/llamacpp.md#variants-of-the-cpu-backend).
"""

import ctypes
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import BackendError

# With AMX, whose product of q8_0 dies of an illegal instruction (docs/sources/llamacpp.md#amx).
_LEFT_OUT = ("sapphirerapids",)


def load_backends(bindings: Any) -> None:
    """Load the backends that fit this processor; does nothing in a build that has its backends inside.

    Args:
        bindings: llama-cpp-python's module, as it was imported.

    Raises:
        BackendError: none fits, or their files are gone.
    """
    folder = backend_folder(bindings)
    if not folder.is_dir():  # bindings of another kind
        return
    ggml = bindings._ctypes_extensions.load_shared_library("ggml", folder)
    if ggml.ggml_backend_reg_count() == 0:
        if variant := best_variant(folder):
            ggml.ggml_backend_load(os.fsencode(variant))
        if ggml.ggml_backend_reg_count() == 0:
            raise BackendError(
                f"{folder}: no backend of llama.cpp there fits this processor. Install llama.cpp again: "
                "python -m tinyllava_edge.install --fresh"
            )


def best_variant(folder: Path) -> Path | None:
    """The CPU backend that scores this processor highest, as llama.cpp chooses; None where none fits."""
    scores: dict[Path, int] = {}
    for path in sorted(folder.glob("*ggml-cpu-*")):
        if not any(name in path.name for name in _LEFT_OUT):
            with suppress(OSError, AttributeError):
                scores[path] = ctypes.CDLL(str(path)).ggml_backend_score()
    best = max(scores, key=lambda path: scores[path], default=None)
    return best if best and scores[best] > 0 else None


def backend_folder(bindings: Any) -> Path:
    """Where llama-cpp-python has llama.cpp's libraries."""
    own = Path(bindings.__file__).resolve().parent / "lib"
    return Path(os.environ.get("LLAMA_CPP_LIB_PATH", own))


if __name__ == "__main__":  # what the library says of itself, for who would die with it
    _bindings = import_module("llama_cpp")
    load_backends(_bindings)
    sys.stdout.write(_bindings.llama_print_system_info().decode() + "\n")
