"""llama.cpp's own picture code, libmtmd, in this process: what its programs make of an mmproj file.

Its graph is tapped while it runs: by name (`layer_out-3`), and the pixels that go in. Structure of a ggml
tensor: docs/sources/llamacpp.md#tapping-a-graph.
"""

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import mtmd_cpp

from tinyllava_edge.errors import ExportError

Floats = npt.NDArray[np.float32]
PIXELS_NODE = "inp_raw"
_TYPES = {0: np.float32, 1: np.float16}  # GGML_TYPE_F32, GGML_TYPE_F16
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _Tensor(ctypes.Structure):
    """The head of `struct ggml_tensor`."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


class Mtmd:
    """An opened mmproj file; `open_mtmd` makes one."""

    def __init__(self, context: Any, taps: "_Taps") -> None:
        self._context = context
        self._taps = taps

    def encode(
        self, picture: npt.NDArray[np.uint8], taps: Sequence[str] = ()
    ) -> tuple[Floats, dict[str, Floats]]:
        """Rows that a picture becomes, and what passed through the graph on the way.

        Args:
            picture: [height, width, 3].
            taps: names of nodes to keep, as regular expressions; `PIXELS_NODE` for what goes in.

        Returns:
            [rows, hidden of the language model], and by name what was tapped, outermost dimension first.

        Raises:
            ExportError: llama.cpp could not; its own words are in the message.
        """
        self._taps.want(taps)
        pieces = [self._rows(chunk) for chunk in self._picture_chunks(picture)]
        return np.concatenate(pieces), self._taps.found

    def _rows(self, chunk: Any) -> Floats:
        if mtmd_cpp.mtmd_input_chunk_get_type(chunk) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
            raise ExportError("llama.cpp puts text of its own around the picture.")
        status = mtmd_cpp.mtmd_encode_chunk(self._context, chunk)
        if status != 0:
            raise ExportError(f"llama.cpp cannot encode the picture (status {status}).")
        data = mtmd_cpp.mtmd_get_output_embd(self._context)
        return np.ctypeslib.as_array(data, self._taps.last_shape).copy()

    def _picture_chunks(self, picture: npt.NDArray[np.uint8]) -> Iterator[Any]:
        height, width, _ = picture.shape
        data = np.ascontiguousarray(picture)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd_cpp.mtmd_bitmap_init(width, height, pointer)
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        assert bitmap is not None
        assert chunks is not None
        part = mtmd_cpp.mtmd_input_part(None, bitmap)
        parts = (ctypes.POINTER(mtmd_cpp.mtmd_input_part) * 1)(ctypes.pointer(part))
        try:
            status = mtmd_cpp.mtmd_tokenize_from_parts(self._context, chunks, parts, 1, False)
            if status != 0:
                raise ExportError(f"llama.cpp cannot prepare the picture (status {status}).")
            for number in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
                yield mtmd_cpp.mtmd_input_chunks_get(chunks, number)
        finally:
            mtmd_cpp.mtmd_input_chunks_free(chunks)
            mtmd_cpp.mtmd_bitmap_free(bitmap)


@contextmanager
def open_mtmd(path: Path, language: Path, *, threads: int = 1) -> Iterator[Mtmd]:
    """Open an mmproj file on the CPU.

    Args:
        path: the file.
        language: the language model's GGUF file, of which only the header is read.
        threads: for the graph.

    Raises:
        ExportError: llama.cpp refuses one of them; its own words are in the message.
    """
    taps = _Taps()
    parameters = mtmd_cpp.mtmd_context_params_default()
    parameters.use_gpu = parameters.print_timings = parameters.warmup = False
    parameters.n_threads = threads
    parameters.cb_eval = taps.callback
    model_parameters = llama_cpp.llama_model_default_params()
    model_parameters.vocab_only = True
    with captured_log() as log, ExitStack() as stack:
        model = llama_cpp.llama_model_load_from_file(str(language).encode(), model_parameters)
        if model is None:
            raise ExportError(f"{language}: llama.cpp refuses it: {_last_words(log)}")
        stack.callback(llama_cpp.llama_model_free, model)
        context = mtmd_cpp.mtmd_init_from_file(str(path).encode(), model, parameters)
        if context is None:
            raise ExportError(f"{path}: llama.cpp refuses it: {_last_words(log)}")
        stack.callback(mtmd_cpp.mtmd_free, context)
        yield Mtmd(context, taps)


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect what libmtmd says instead of printing it."""
    lines: list[str] = []

    def keep(level: int, text: bytes, _: object) -> None:
        lines.append(text.decode("utf-8", errors="replace"))

    receive, ignore = _LOG_CALLBACK(keep), _LOG_CALLBACK(lambda level, text, _: None)

    mtmd_cpp.mtmd_log_set(receive, None)
    llama_cpp.llama_log_set(receive, None)
    try:
        yield lines
    finally:
        mtmd_cpp.mtmd_log_set(ignore, None)
        llama_cpp.llama_log_set(ignore, None)
        _KEPT.append(ignore)  # the library keeps its address


_KEPT: list[Any] = []


def _last_words(log: list[str]) -> str:
    errors = [line for line in "".join(log).splitlines() if "error" in line or "fail" in line]
    return " ".join((errors or log)[-1].split())[-300:] if log else "it says nothing"


class _Taps:
    """Keeps what nodes computed, for the scheduler's callback, which asks about each and then shows it."""

    def __init__(self) -> None:
        self.found: dict[str, Floats] = {}
        self.last_shape = (0, 0)
        self._wanted: re.Pattern[str] | None = None
        self._has_pixels = False
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._see)

    def want(self, names: Sequence[str]) -> None:
        self.found, self._has_pixels = {}, PIXELS_NODE not in names
        self._wanted = re.compile("|".join(names)) if names else None

    def _see(self, address: int, asks: bool, _: object) -> bool:
        tensor = _Tensor.from_address(address)
        self.last_shape = (tensor.ne[1], tensor.ne[0])
        name = tensor.name.decode(errors="replace")
        is_wanted = self._wanted is not None and self._wanted.fullmatch(name) is not None
        source = None if self._has_pixels else _source_named(tensor, PIXELS_NODE)
        if not asks and is_wanted:
            self.found[name] = _values(tensor)
        if not asks and source is not None:
            self.found[PIXELS_NODE] = _values(source)
            self._has_pixels = True
        return not asks or is_wanted or source is not None


def _source_named(tensor: _Tensor, name: str) -> _Tensor | None:
    return next((one.contents for one in tensor.src if one and one.contents.name == name.encode()), None)


def _values(tensor: _Tensor) -> Floats:
    """A contiguous tensor's values, outermost dimension first, without leading ones."""
    dtype = np.dtype(_TYPES[tensor.type])
    shape = [int(size) for size in reversed(tensor.ne)]
    data = ctypes.string_at(tensor.data, int(np.prod(shape)) * dtype.itemsize)
    while len(shape) > 1 and shape[0] == 1:
        shape.pop(0)
    return np.frombuffer(data, dtype).reshape(shape).astype(np.float32)
