"""The language model through llama.cpp's C interface (llama-cpp-python's bindings).

Batches are built here, not by the `Llama` class: ids go through `batch.token`, a picture's rows through
`batch.embd`. Every return code is checked, and llama.cpp's own log lines are attached to an error.
"""

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import Bundle, LanguageSpec
from tinyllava_edge.compute_classes import FLOAT32_CPU, ComputeClass, llamacpp_class
from tinyllava_edge.device import has_nvidia_gpu
from tinyllava_edge.errors import BackendError, BundleError, UsageError
from tinyllava_edge.llamacpp_memory import BATCH, DEFAULT_KV_TYPE, KV_BYTES, OUTPUT_ROWS, suits_cache

from .access import freed_with
from .base import BackendOptions, Segment, StopFlag, StoppedError, check_open, check_segment
from .decode_threads import DecodeThreads
from .llamacpp_library import load_library
from .llamacpp_offload import place, refusal, set_devices
from .llamacpp_sequences import Part, SequenceLanguage, Sequences, SequencesBatch
from .threads import thread_budget

# name -> (ggml_type, flash attention: -1 where the device has it, 0 never, 1 always).
# Flash attention adds up in fp16: for 135 M parameters and 800 positions prefill was 25 % faster, and nano's
# logits moved by NMSE 8e-8. A quantized cache needs it; f32 is for conformance and goes without.
_KV_TYPES = {"f16": (1, -1), "f32": (0, 0), "q8_0": (8, 1)}
_ONE_THREAD_BYTES = 16 << 20  # a token of a smaller model is too little work to share; see threads.py
_UNSPLIT_POSITIONS = (
    256  # behind them flash attention adds up a token's f16 cache in as many parts as threads
)
_FEW_ROWS = 8  # a token of so many sequences is work as for one
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
_DECODE_FAILURES = {1: "no room in the KV cache", -1: "invalid batch"}
_ABORTED = 2


def open_language(bundle: Bundle, options: BackendOptions) -> "LlamaCppLanguage":
    """Open a bundle's GGUF variant.

    Raises:
        BackendError: the library does not load, or refuses the file; with its log lines.
        BundleError: no such variant.
        UsageError: the context is longer than the model's.
    """
    variant = bundle.variant("language", options.language, target="gguf")
    if variant.target != "gguf":
        raise BundleError(f"language variant {variant.name} is {variant.target}; llamacpp runs gguf.")
    language = LlamaCppLanguage(
        bundle.path(variant.files[0]), bundle.manifest.language, options, name=f"llamacpp {variant.name}"
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
        options: which of its layers are on which GPU, KV type, flash attention, context and threads.
        name: for people; KV type and GPU are added.

    Attributes:
        build: what the library was compiled for.
        gpu_sm: compute capability of the GPU ("8.7", "" where llama.cpp does not say), None on the CPU.
        compute_class: how its products round; `open_language` says it, as it knows the variant.
        note: why the model is not on the GPU, or not all of it; "" where it is, or nobody would expect it.
    """

    def __init__(self, path: Path, spec: LanguageSpec, options: BackendOptions, *, name: str) -> None:
        self._kv_type = options.kv_type or DEFAULT_KV_TYPE
        self.name = f"{name}, {self._kv_type} KV"
        self.vocab_size = spec.vocab_size
        self.hidden_size = spec.hidden_size
        self.context_length = options.positions(spec)
        self._position = 0
        self._has_logits = False
        self._flag: StopFlag | None = None
        self._is_divided = False
        self._path, self._spec, self._options = path, spec, options
        self._flash_attention = _flash_attention(options, self._kv_type)
        is_split = self._flash_attention != 0 and self._kv_type == "f16"
        self._free_until = _UNSPLIT_POSITIONS if is_split else self.context_length
        self._model: Any = None
        self._context: Any = None
        self._owned: list[tuple[Callable[[Any], None], Any]] = []  # how to free what, the last one first
        self._free = freed_with(self, self._owned, _free_in_turn)
        loaded = load_library()
        self._loaded, self._library, self._log = loaded, loaded.bindings, loaded.log
        self._log.attach()
        self.build = loaded.build
        try:
            placed = place(loaded, options, spec.num_hidden_layers, self._open_with)
        except BaseException:
            self.close()
            raise
        self.note = placed.why
        self.gpu_sm = self._log.gpu_sm if placed.layers else None
        is_fixed = options.threads is not None or placed.layers > 0
        self._decode_threads = DecodeThreads(self._threads[0], fixed=is_fixed)
        self.compute_class: ComputeClass = FLOAT32_CPU
        if loaded.gpus or has_nvidia_gpu():
            self.name += f", {placed.label}"
        self._memory = self._library.llama_get_memory(self._context)
        self._batch = SequencesBatch(self._library, 1)

    def evaluate(
        self, segment: Segment, position: int, *, all_logits: bool = False
    ) -> npt.NDArray[np.float32] | None:
        """See `LanguageBackend`."""
        check_open(self.name, self._context is not None)
        if self._is_divided:
            raise BackendError(
                f"{self.name}: was divided into sequences. Ask one of the models that divide gave."
            )
        check_segment(self, segment, position, self._position)
        self._has_logits = False
        parts = []
        step = OUTPUT_ROWS if all_logits else BATCH
        for start in range(0, len(segment), step):
            rows = segment[start : start + step]
            is_last = start + len(rows) == len(segment)
            self._decode(rows, position + start, wanted=len(rows) if all_logits else int(is_last))
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
        self.cut(0, position)
        self._position = position
        self._has_logits = False

    def heed(self, flag: StopFlag | None) -> None:
        """See `Stoppable`; on a GPU llama.cpp looks between two batches only."""
        check_open(self.name, self._context is not None)
        self._flag = flag
        looks = self._loaded.bindings.ggml_abort_callback() if flag is None else self._loaded.is_not_empty
        where = None if flag is None else ctypes.addressof(flag.memory)
        self._library.llama_set_abort_callback(self._context, looks, where)

    def save_state(self) -> bytes:
        """See `KeepsState`."""
        check_open(self.name, self._context is not None)
        return self.state_of(0)

    def load_state(self, state: bytes, positions: int) -> None:
        """See `KeepsState`."""
        check_open(self.name, self._context is not None)
        self._position, self._has_logits = 0, False
        self.put_state(0, state, positions)
        self._position = positions

    def divide(self, count: int) -> list[SequenceLanguage]:
        """A context of so many sequences in the place of this one's, each as long; see `Divisible`.

        Raises:
            BackendError: there is no memory for it; nothing is open then.
        """
        check_open(self.name, self._context is not None)
        free, context = self._owned.pop()
        self._context = None
        free(context)
        self._context = self._create_context(count)
        self._memory = self._library.llama_get_memory(self._context)
        self._is_divided = True
        return Sequences(self, count).languages

    @property
    def bindings(self) -> Any:
        """llama-cpp-python's module."""
        return self._library

    def decode_batch(self, batch: Any, wanted: list[int]) -> list[npt.NDArray[np.float32]]:
        """Decode a batch; logits of so many rows each, [wanted, vocab], of the rows that have some.

        Raises:
            BackendError: llama.cpp failed.
        """
        check_open(self.name, self._context is not None)
        one, many = self._threads
        self._library.llama_set_n_threads(self._context, one, one if batch.n_tokens <= _FEW_ROWS else many)
        self._check(self._library.llama_decode(self._context, batch), f"{batch.n_tokens} rows")
        rows = np.empty((0, self.vocab_size), dtype=np.float32)
        if count := sum(wanted):
            rows = self._read_logits(self._library.llama_get_logits(self._context), count)
        return np.split(rows, np.cumsum(wanted)[:-1])

    def cut(self, sequence: int, position: int) -> None:
        """Forget a sequence from a position on; a BackendError where that cannot be."""
        if not self._library.llama_memory_seq_rm(self._memory, sequence, position, -1):
            raise BackendError(f"{self.name}: the context cannot be cut at position {position}.")

    def state_of(self, sequence: int) -> bytes:
        """What `save_state` gives, of a sequence."""
        size = self._library.llama_state_seq_get_size(self._context, sequence)
        state = (ctypes.c_uint8 * size)()
        written = self._library.llama_state_seq_get_data(self._context, state, size, sequence)
        return bytes(memoryview(state)[:written])

    def put_state(self, sequence: int, state: bytes, positions: int) -> None:
        """What `load_state` does, of a sequence."""
        self.cut(sequence, 0)
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        read = self._library.llama_state_seq_set_data(self._context, buffer, len(state), sequence)
        held = self._library.llama_memory_seq_pos_max(self._memory, sequence) + 1
        if read != len(state) or not 0 < positions <= held:
            self.cut(sequence, 0)
            raise BackendError(
                f"{self.name}: a saved context cannot be put back: {read} of {len(state)} bytes were read, "
                f"{held} positions for at least {positions}.{self._log.said()}"
            )
        if positions < held:
            self.cut(sequence, positions)

    def close(self) -> None:
        """See `LanguageBackend`."""
        self._context = self._model = None
        self._free()

    def _decode(self, rows: Segment, position: int, *, wanted: int) -> None:
        if self._flag is not None and self._flag.is_set:
            raise StoppedError(f"{self.name}: interrupted at position {position}.")
        self._batch.fill([Part(sequence=0, rows=rows, position=position, wanted=wanted)])
        is_free = len(rows) == 1 and position < self._free_until
        one = self._decode_threads.count if is_free else self._threads[0]
        self._library.llama_set_n_threads(self._context, one, self._threads[1])
        began = time.monotonic()
        code = self._library.llama_decode(self._context, self._batch.struct)
        self._check(code, f"{len(rows)} rows at position {position}")
        if is_free:
            self._decode_threads.took(time.monotonic() - began)

    def _check(self, code: int, what: str) -> None:
        if code == _ABORTED:
            self._log.clear()
            raise StoppedError(f"{self.name}: interrupted in {what}.")
        if code != 0:
            why = _DECODE_FAILURES.get(code, "failed")
            raise BackendError(
                f"{self.name}: llama_decode of {what} returned {code} ({why}).{self._log.said()}"
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

    def _open_with(self, layers: int) -> None:
        """Model and context, with so many layers on the GPU, in the place of those before."""
        _free_in_turn(self._owned)
        self._log.clear()
        self._model = self._load_model(layers)
        self._log.clear()
        self._context = self._create_context()

    def _load_model(self, layers: int) -> Any:
        parameters = self._library.llama_model_default_params()
        set_devices(parameters, self._loaded, self._options, layers)
        model = self._library.llama_model_load_from_file(os.fsencode(self._path), parameters)
        if not model:
            raise refusal(f"{self._path}: llama.cpp cannot load it.", self._log.said())
        self._owned.append((self._library.llama_model_free, model))
        return model

    def _create_context(self, sequences: int = 1) -> Any:
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = sequences * self.context_length, sequences
        parameters.n_batch = parameters.n_ubatch = min(BATCH, parameters.n_ctx)  # of all sequences together
        if hasattr(parameters, "n_outputs_max"):  # llama-cpp-python 0.3.16 keeps room for every row
            parameters.n_outputs_max = OUTPUT_ROWS
        budget = thread_budget(self._options.threads)
        is_small = self._options.threads is None and self._path.stat().st_size < _ONE_THREAD_BYTES
        self._threads = 1 if is_small else budget, budget  # for a token, and for a prompt
        parameters.n_threads, parameters.n_threads_batch = self._threads
        parameters.type_k = parameters.type_v = _KV_TYPES[self._kv_type][0]
        parameters.flash_attn_type = self._flash_attention
        context = self._library.llama_init_from_model(self._model, parameters)
        if not context:
            length = f"{sequences} times " * (sequences > 1) + str(self.context_length)
            message = f"{self.name}: llama.cpp cannot make a context of {length} positions"
            raise refusal(f"{message}.", self._log.said(), self._less_memory(sequences))
        self._owned.append((self._library.llama_free, context))
        return context

    def _less_memory(self, sequences: int) -> str:
        """What a context that does not fit asked for, and what asks for less."""
        spec = self._spec
        values = 2 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim * self.context_length
        mib = sequences * values * KV_BYTES[self._kv_type] / (1 << 20)
        smaller = " and --parallel" * (sequences > 1)
        smaller += " and --kv-type q8_0" if self._kv_type != "q8_0" and suits_cache(spec, "q8_0") else ""
        return (
            f"Its {self._kv_type} KV cache alone is {mib:,.0f} MiB: a smaller --context{smaller} take less."
        )


def _flash_attention(options: BackendOptions, kv_type: str) -> int:
    """As llama.cpp has it; to want none with a cache that needs it is a UsageError."""
    default = _KV_TYPES[kv_type][1]
    asked = default if options.flash_attention is None else _FLASH_ATTENTION[options.flash_attention]
    if asked == 0 and default == 1:
        raise UsageError(f"a {kv_type} KV cache needs flash attention: leave --flash-attention off out.")
    return asked


def _free_in_turn(owned: list[tuple[Callable[[Any], None], Any]]) -> None:
    while owned:
        free, pointer = owned.pop()
        free(pointer)
