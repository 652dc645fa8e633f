"""llama.cpp's own multimodal library through llama-cpp-python, as its command line calls it.

The text's ids are the bundle's own; the picture goes through mtmd. docs/sources/peers.md#mtmd.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

from tinyllava_edge.llamacpp_backends import load_backends

from .lines import Marks, Prompt, Sample, Task, peak_of

_BATCH = 512  # llama.cpp's default physical batch; the logical one, 2048, only splits what is longer


def open_peer(task: Task) -> "Mtmd":
    """Open a GGUF and its mmproj."""
    return Mtmd(task)


class Mtmd:
    """One model, one context, one mmproj, with llama.cpp's own defaults apart from threads and length."""

    def __init__(self, task: Task) -> None:
        import llama_cpp
        from llama_cpp import mtmd_cpp
        from PIL import Image

        self._task, self._llama, self._mtmd = task, llama_cpp, mtmd_cpp
        load_backends(llama_cpp)  # which instructions, as the bundle's own rows; OpenMP waits as it comes
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        self._model = _there(
            llama_cpp.llama_model_load_from_file(task.files["gguf"].encode(), parameters),
            f"llama.cpp cannot load {task.files['gguf']}",
        )
        self._context = _there(
            llama_cpp.llama_init_from_model(self._model, self._context_parameters()),
            f"llama.cpp cannot make a context of {task.context_length} positions",
        )
        options = mtmd_cpp.mtmd_context_params_default()
        options.n_threads, options.print_timings = task.threads, False
        self._tower = _there(
            mtmd_cpp.mtmd_init_from_file(task.files["mmproj"].encode(), self._model, options),
            f"mtmd cannot load {task.files['mmproj']}",
        )
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        picture = Image.open(task.picture).convert("RGB")
        data = (ctypes.c_uint8 * (3 * picture.width * picture.height)).from_buffer_copy(picture.tobytes())
        self._bitmap = mtmd_cpp.mtmd_bitmap_init(picture.width, picture.height, data)
        self._picture_tokens = 0

    def _context_parameters(self) -> Any:
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx = self._task.context_length
        parameters.n_ubatch = _BATCH
        parameters.n_threads = parameters.n_threads_batch = self._task.threads
        return parameters

    def facts(self) -> dict[str, Any]:
        """See `Peer`."""
        return {
            "versions": {"llama-cpp-python": self._llama.__version__},
            "library": self._llama.llama_print_system_info().decode(),
            "cannot_match": [
                *self._other_length(),
                "the projector's GELU is the tanh form",
                "keeps nothing between requests: a second question costs what the first one does",
            ],
        }

    def answer(self, prompt: Prompt) -> Sample:
        """See `Peer`."""
        marks = Marks()
        position = self._prefill(prompt, marks)
        marks.mark_token()
        marks.rest_is_prefill()
        ids = [self._most_likely()]
        while len(ids) < self._task.num_tokens:
            position = self._evaluate(ids[-1:], position)
            ids.append(self._most_likely())
            marks.mark_token()
        return marks.sample(ids, prompt_tokens=position - len(ids) + 1)

    def second(self) -> Sample | None:
        """See `Peer`."""
        return None

    def forced(self, prompt: Prompt, ids: Sequence[int]) -> Any:
        """See `Peer`."""
        import numpy as np

        position = self._prefill(prompt, Marks())
        rows = [self._logits()]
        for token in ids[:-1]:
            position = self._evaluate([token], position)
            rows.append(self._logits())
        return np.stack(rows)

    def peak_bytes(self) -> int:
        """See `Peer`."""
        return peak_of()

    def close(self) -> None:
        """See `Peer`."""
        self._mtmd.mtmd_bitmap_free(self._bitmap)
        self._mtmd.mtmd_free(self._tower)
        self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)

    def _prefill(self, prompt: Prompt, marks: Marks) -> int:
        """An empty context filled with a prompt; the number of its positions."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        before, after = prompt.parts()
        position = self._evaluate(before, 0)
        chunks, chunk = self._picture_chunk(marks)
        with marks.stage("vision"):
            _succeeded(self._mtmd.mtmd_encode_chunk(self._tower, chunk), "mtmd_encode_chunk")
        rows, end = self._mtmd.mtmd_get_output_embd(self._tower), self._llama.llama_pos(0)
        _succeeded(
            self._mtmd.mtmd_helper_decode_image_chunk(
                self._tower, self._context, chunk, rows, position, 0, _BATCH, ctypes.byref(end),
                self._mtmd.mtmd_helper_post_decode_callback(), None,
            ),
            "mtmd_helper_decode_image_chunk",
        )  # fmt: skip
        self._mtmd.mtmd_input_chunks_free(chunks)
        return self._evaluate(after, end.value)

    def _picture_chunk(self, marks: Marks) -> tuple[Any, Any]:
        """The chunks of a prompt that is a picture alone, to be freed, and the one that is the picture."""
        with marks.stage("preprocess"):
            text = self._mtmd.mtmd_input_text()
            marker = self._mtmd.mtmd_default_marker()
            text.text, text.text_len, text.add_special, text.parse_special = marker, len(marker), False, True
            chunks = self._mtmd.mtmd_input_chunks_init()
            bitmaps = (ctypes.c_void_p * 1)(self._bitmap)
            found = self._mtmd.mtmd_tokenize(self._tower, chunks, ctypes.byref(text), bitmaps, 1)
            _succeeded(found, "mtmd_tokenize")
        for index in range(self._mtmd.mtmd_input_chunks_size(chunks)):
            chunk = self._mtmd.mtmd_input_chunks_get(chunks, index)
            kind = self._mtmd.mtmd_input_chunk_get_type(chunk)
            if kind == self._mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                return chunks, chunk
        raise RuntimeError("mtmd made no picture of a prompt with one")

    def _other_length(self) -> list[str]:
        """What is to be said where a picture has more rows than the bundle makes."""
        chunks, chunk = self._picture_chunk(Marks())
        found, wanted = self._mtmd.mtmd_input_chunk_get_n_tokens(chunk), self._task.tokens_per_picture
        self._mtmd.mtmd_input_chunks_free(chunks)
        return [] if found == wanted else [f"a picture is {found} positions, not {wanted}: no row is dropped"]

    def _evaluate(self, ids: Sequence[int], position: int) -> int:
        """Ids behind a position, in a batch as llama.cpp makes one; the next position."""
        if ids:
            tokens = (self._llama.llama_token * len(ids))(*ids)
            batch = self._llama.llama_batch_get_one(tokens, len(ids))
            _succeeded(self._llama.llama_decode(self._context, batch), "llama_decode")
        return position + len(ids)

    def _logits(self) -> Any:
        """Copied [vocab]: the next call overwrites llama.cpp's."""
        import numpy as np

        pointer = self._llama.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self._vocab_size,)).copy()

    def _most_likely(self) -> int:
        return int(self._logits().argmax())


def _there(pointer: Any, message: str) -> Any:
    if not pointer:
        raise RuntimeError(message)
    return pointer


def _succeeded(code: int, what: str) -> None:
    if code != 0:
        raise RuntimeError(f"{what} returned {code}")
