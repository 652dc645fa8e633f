"""llama.cpp itself, as the judge of the files we write for it."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from tinyllava_edge.llamacpp_backends import load_backends

_F32 = 0  # GGML_TYPE_F32, for the KV cache


@contextmanager
def opened(path: Path, *, vocabulary_only: bool = False) -> Iterator[Any]:
    """A loaded GGUF file, one thread, float32 KV cache."""
    load_backends(llama_cpp)
    model = llama_cpp.Llama(
        str(path),
        n_ctx=512,
        n_batch=512,
        n_threads=1,
        n_threads_batch=1,
        type_k=_F32,
        type_v=_F32,
        logits_all=True,
        vocab_only=vocabulary_only,
        verbose=False,
    )
    try:
        yield model
    finally:
        model.close()


def prefill_logits(path: Path, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Logits [positions, vocab] of a prompt."""
    with opened(path) as model:
        model.eval(list(ids))
        return np.array(model.scores[: len(ids)], dtype=np.float32)


def token_ids(model: Any, text: str, *, special: bool = False) -> list[int]:
    """llama.cpp's own ids of a text, without BOS."""
    data = text.encode()
    buffer = (llama_cpp.llama_token * (len(data) + 16))()
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    count = llama_cpp.llama_tokenize(
        vocabulary,
        data,
        len(data),
        ctypes.cast(buffer, ctypes.POINTER(ctypes.c_int32)),
        len(buffer),
        False,
        special,
    )
    assert count >= 0
    return list(buffer[:count])
