"""llama.cpp on a foreign GGUF file, in a process of its own: on some files it ends the one it is in."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import ExportError
from tinyllava_edge.module_process import module_command

Floats = npt.NDArray[np.float32]
_F32 = 0  # GGML_TYPE_F32, for the KV cache


def ids_and_logits(path: Path, text: str, ids: list[int]) -> tuple[list[int], Floats]:
    """llama.cpp's ids of a text, without BOS, and its logits [positions, vocab] of other ids.

    Raises:
        ExportError: it refuses the file, or dies of it.
    """
    with TemporaryDirectory() as scratch:
        request = json.dumps({"path": str(path), "text": text, "ids": ids, "out": f"{scratch}/out.npz"})
        done = subprocess.run(
            module_command(__spec__.name),
            input=request,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # a debugger would be attached
        )
        if done.returncode != 0:
            words = [line for line in done.stderr.splitlines() if line.strip()]
            raise ExportError(
                f"{path}: llama.cpp cannot run it: {words[-1][:300] if words else done.returncode}"
            )
        with np.load(f"{scratch}/out.npz") as arrays:
            return arrays["ids"].tolist(), arrays["logits"]


def _main() -> None:
    import llama_cpp

    request = json.load(sys.stdin)
    count = len(request["ids"])
    sizes: dict[str, Any] = {"n_ctx": max(64, count), "n_batch": max(64, count)}
    floats: dict[str, Any] = {"type_k": _F32, "type_v": _F32}
    model: Any = llama_cpp.Llama(request["path"], **sizes, **floats, logits_all=True, verbose=False)
    data = request["text"].encode()
    buffer = (llama_cpp.llama_token * (len(data) + 16))()
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    pointer = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_int32))
    made = llama_cpp.llama_tokenize(vocabulary, data, len(data), pointer, len(buffer), False, True)
    model.eval(request["ids"])
    logits = np.array(model.scores[:count], dtype=np.float32)
    np.savez(request["out"], ids=np.array(buffer[:made], dtype=np.int64), logits=logits)


if __name__ == "__main__":
    _main()
