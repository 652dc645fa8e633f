"""The language model through llama.cpp's C interface (llama-cpp-python's bindings).

Batches are built here, not by the `Llama` class: ids go through `batch.token`, a picture's rows through
`batch.embd`. Every return code is checked, and llama.cpp's own log lines are attached to an error.

llama.cpp computes with OpenMP, so the library is loaded only after `threads.limit_openmp_spin`.
"""

import ctypes
import os
import re
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import Bundle, LanguageSpec
from tinyllava_edge.compute_classes import FLOAT32_CPU, llamacpp_class
from tinyllava_edge.device import has_nvidia_gpu
from tinyllava_edge.errors import BackendError, BundleError
from tinyllava_edge.install import llamacpp_line

from .access import freed_with
from .base import BackendOptions, Segment, check_open, check_segment
from .threads import limit_openmp_spin, thread_budget

BATCH = 512  # rows of one call; llama.cpp sizes its working memory by it
ALL_LOGITS_BATCH = 64  # the logits of 512 rows would take 300 MB twice with a vocabulary of 150,000
# name -> (ggml_type, flash attention: -1 where the device has it, 0 never, 1 always).
# Flash attention adds up in fp16: for 135 M parameters and 800 positions prefill was 25 % faster, and nano's
# logits moved by NMSE 8e-8. A quantized cache needs it; f32 is for conformance and goes without.
_KV_TYPES = {"f16": (1, -1), "f32": (0, 0), "q8_0": (8, 1)}
DEFAULT_KV_TYPE = "f16"
_ONE_THREAD_BYTES = 16 << 20  # a token of a smaller model is too little work to share; see threads.py
_ALL_LAYERS = 1 << 20
_GPU_SM = re.compile(rb"compute capability (\d+\.\d)")
_DECODE_FAILURES = {1: "no room in the KV cache", 2: "aborted", -1: "invalid batch"}


def open_language(bundle: Bundle, options: BackendOptions) -> "LlamaCppLanguage":
    """Open a bundle's GGUF variant.

    Raises:
        BackendError: the library does not load, or refuses the file; with its log lines.
        BundleError: no such variant.
        UsageError: the context is longer than the model's.
    """
    variant = bundle.variant("language", options.language)
    if variant.target != "gguf":
        raise BundleError(f"language variant {variant.name} is {variant.target}; llamacpp runs gguf.")
    kv_type = options.kv_type or DEFAULT_KV_TYPE
    language = LlamaCppLanguage(
        bundle.path(variant.files[0]),
        bundle.manifest.language,
        name=f"llamacpp {variant.name}, {kv_type} KV",
        kv_type=kv_type,
        context_length=options.positions(bundle.manifest.language),
        threads=options.threads,
    )
    language.compute_class = llamacpp_class(
        variant.name, language.gpu_sm, has_float16="FP16_VA = 1" in language.build
    )
    return language


class LlamaCppLanguage:
    """One llama.cpp model with one context of one sequence.

    Args:
        path: the GGUF file, which `check_gguf` has passed: llama.cpp is no judge of a hostile one.
        spec: what the manifest says is in it.
        name: for people.
        kv_type: one of `base.KV_TYPES`.
        context_length: positions of the context.
        threads: see `thread_budget`.
    """

    def __init__(
        self,
        path: Path,
        spec: LanguageSpec,
        *,
        name: str,
        kv_type: str,
        context_length: int,
        threads: int | None = None,
    ) -> None:
        self.name = name
        self.vocab_size = spec.vocab_size
        self.hidden_size = spec.hidden_size
        self.context_length = context_length
        self._position = 0
        self._has_logits = False
        self._model: Any = None
        self._context: Any = None
        self._owned: list[tuple[Callable[[Any], None], Any]] = []  # how to free what, the last one first
        self._free = freed_with(self, self._owned, _free_in_turn)
        budget = thread_budget(threads)
        is_small = threads is None and path.stat().st_size < _ONE_THREAD_BYTES
        self._library, self._log = _load_library()
        self._log.attach()
        self.build = self._library.llama_print_system_info().decode()  # instructions it was compiled for
        self._has_gpu = bool(self._library.llama_supports_gpu_offload())
        self.compute_class = FLOAT32_CPU
        self.gpu_sm = self._log.gpu_sm if self._has_gpu else None
        if self._has_gpu:
            self.name += ", GPU"
        elif has_nvidia_gpu():
            self.name += ", without the GPU"
        try:
            self._model = self._load_model(path)
            self._log.clear()
            self._context = self._create_context(kv_type, budget, 1 if is_small else budget)
        except BaseException:
            self.close()
            raise
        self._memory = self._library.llama_get_memory(self._context)
        self._batch = _Batch(self._library)

    def evaluate(
        self, segment: Segment, position: int, *, all_logits: bool = False
    ) -> npt.NDArray[np.float32] | None:
        """See `LanguageBackend`."""
        check_open(self.name, self._context is not None)
        check_segment(self, segment, position, self._position)
        self._has_logits = False
        parts = []
        step = ALL_LOGITS_BATCH if all_logits else BATCH
        for start in range(0, len(segment), step):
            rows = segment[start : start + step]
            is_last = start + len(rows) == len(segment)
            self._decode(rows, position + start, all_logits=all_logits, last_logits=is_last)
            if all_logits:
                parts.append(self._read_logits(self._library.llama_get_logits(self._context), len(rows)))
        self._position = position + len(segment)
        self._has_logits = True
        return np.concatenate(parts) if all_logits else None

    def last_logits(self) -> npt.NDArray[np.float32]:
        """See `LanguageBackend`."""
        check_open(self.name, self._context is not None)
        if not self._has_logits:
            raise BackendError(f"{self.name}: nothing was evaluated, so there are no logits.")
        logits = self._read_logits(self._library.llama_get_logits_ith(self._context, -1), 1)
        return logits.reshape(self.vocab_size)

    def truncate(self, position: int) -> None:
        """See `LanguageBackend`."""
        check_open(self.name, self._context is not None)
        if position >= self._position and position > 0:
            return
        if not self._library.llama_memory_seq_rm(self._memory, 0, position, -1):
            raise BackendError(f"{self.name}: the context cannot be cut at position {position}.")
        self._position = position
        self._has_logits = False

    def close(self) -> None:
        """See `LanguageBackend`."""
        self._context = self._model = None
        self._free()

    def _decode(self, rows: Segment, position: int, *, all_logits: bool, last_logits: bool) -> None:
        self._batch.fill(rows, position, all_logits=all_logits, last_logits=last_logits)
        code = self._library.llama_decode(self._context, self._batch.struct)
        if code != 0:
            why = _DECODE_FAILURES.get(code, "failed")
            raise BackendError(
                f"{self.name}: llama_decode of {len(rows)} rows at position {position} returned {code} "
                f"({why}).{self._log.said()}"
            )

    def _read_logits(self, pointer: Any, rows: int) -> npt.NDArray[np.float32]:
        """Copy logits [rows, vocab] out of llama.cpp's buffer, which the next call overwrites."""
        if not pointer:
            raise BackendError(f"{self.name}: llama.cpp has no logits.{self._log.said()}")
        size = rows * self.vocab_size
        address = ctypes.addressof(pointer.contents)
        memory = memoryview((ctypes.c_float * size).from_address(address)).cast("B")
        logits: npt.NDArray[np.float32] = np.frombuffer(memory, dtype=np.float32).copy()
        return logits.reshape(rows, self.vocab_size)

    def _load_model(self, path: Path) -> Any:
        parameters = self._library.llama_model_default_params()
        parameters.n_gpu_layers = _ALL_LAYERS if self._has_gpu else 0
        model = self._library.llama_model_load_from_file(os.fsencode(path), parameters)
        if not model:
            raise BackendError(f"{path}: llama.cpp cannot load it.{self._log.said()}")
        self._owned.append((self._library.llama_model_free, model))
        return model

    def _create_context(self, kv_type: str, prefill_threads: int, decode_threads: int) -> Any:
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx = self.context_length
        parameters.n_batch = parameters.n_ubatch = min(BATCH, self.context_length)
        parameters.n_threads, parameters.n_threads_batch = decode_threads, prefill_threads
        ggml_type, parameters.flash_attn_type = _KV_TYPES[kv_type]
        parameters.type_k = parameters.type_v = ggml_type
        context = self._library.llama_init_from_model(self._model, parameters)
        if not context:
            raise BackendError(
                f"{self.name}: llama.cpp cannot make a context of {self.context_length} positions."
                f"{self._log.said()}"
            )
        self._owned.append((self._library.llama_free, context))
        return context


def _free_in_turn(owned: list[tuple[Callable[[Any], None], Any]]) -> None:
    while owned:
        free, pointer = owned.pop()
        free(pointer)


class _Batch:
    """A `llama_batch` of up to `BATCH` rows over arrays of our own; one sequence, so `seq_id` stays null."""

    def __init__(self, library: Any) -> None:
        self._tokens = np.zeros(BATCH, dtype=np.int32)
        self._positions = np.zeros(BATCH, dtype=np.int32)
        self._wanted = np.zeros(BATCH, dtype=np.int8)
        self._rows = np.empty((0, 0), dtype=np.float32)  # keeps the embeddings alive while they are read
        self.struct = library.llama_batch()
        self.struct.pos = _pointer(self._positions, ctypes.c_int32)
        self.struct.logits = _pointer(self._wanted, ctypes.c_int8)
        self._token_pointer = _pointer(self._tokens, ctypes.c_int32)

    def fill(self, rows: Segment, position: int, *, all_logits: bool, last_logits: bool) -> None:
        """Put ids [n] or embeddings [n, hidden] in, and say of which rows the logits are wanted."""
        count = len(rows)
        self.struct.n_tokens = count
        self._positions[:count] = np.arange(position, position + count)
        self._wanted[:count] = all_logits
        if last_logits:
            self._wanted[count - 1] = 1
        if rows.ndim == 1:
            self._tokens[:count] = rows
            self.struct.token, self.struct.embd = self._token_pointer, None
        else:
            self._rows = np.ascontiguousarray(rows, dtype=np.float32)
            self.struct.token, self.struct.embd = None, _pointer(self._rows, ctypes.c_float)


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


class _Log:
    """Collects llama.cpp's warnings and errors for our own messages; nothing is printed."""

    _WARNING, _ERROR, _CONTINUED = 3, 4, 5  # ggml_log_level

    def __init__(self, library: Any) -> None:
        self._lines: deque[str] = deque(maxlen=8)
        self._keeping = False
        self.gpu_sm = ""  # of the first GPU, which llama.cpp says once, when it first looks
        self._set = library.llama_log_set
        self._callback = library.llama_log_callback(self._receive)  # the library keeps only its address

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

    def _receive(self, level: int, text: bytes, _: object) -> None:
        if not self.gpu_sm and (found := _GPU_SM.search(text)):
            self.gpu_sm = found[1].decode()
        if level != self._CONTINUED:
            self._keeping = level in (self._WARNING, self._ERROR)
            if self._keeping:
                self._lines.append("")
        if self._keeping and self._lines:
            self._lines[-1] += text.decode("utf-8", errors="replace")


@cache
def _load_library() -> tuple[Any, _Log]:
    """Import the bindings once, after the OpenMP policy is set.

    Raises:
        BackendError: the shared library does not load.
    """
    limit_openmp_spin()
    try:
        import llama_cpp  # here and not above: its OpenMP reads the environment when it is loaded
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"llama-cpp-python does not load ({error}). Install it again: {llamacpp_line()}"
        ) from None
    log = _Log(llama_cpp)
    log.attach()
    llama_cpp.llama_backend_init()
    return llama_cpp, log
