"""The two protocols of a runtime, and the values that cross them.

Everything above them (splicing, sampling, caches, streaming, stop handling, timing) is written once, in
`model.py`. docs/add_a_runtime.md shows how to add one; `tests/runtimes/contract.py` is what it must pass.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import Bundle, LanguageSpec
from tinyllava_edge.errors import BackendError, UsageError
from tinyllava_edge.llamacpp_memory import KV_BYTES
from tinyllava_edge.presets import PRESETS

# One stretch of the context: token ids [n] int32, or embeddings [n, hidden] float32.
Segment = npt.NDArray[np.int32] | npt.NDArray[np.float32]
KV_TYPES = tuple(KV_BYTES)
FLASH_ATTENTION = ("auto", "on", "off")
MAX_THREADS = 1024  # each has a stack: 32,000 took 17 GB
_LEAST = {"tokens": 1, "context_length": 1, "threads": 1, "gpu_layers": 0, "main_gpu": 0, "device": 0}


class VisionBackend(Protocol):
    """Pixels to rows of the language model's input.

    A backend that did not get quite what was asked for, or comes with something to know, has an attribute
    `note`, which is said where it is opened; a language backend likewise.

    Attributes:
        name: for people, with what was chosen: "onnxruntime fp16".
    """

    name: str

    def encode(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[batch, 3, height, width] float32 -> [batch, tokens, hidden] float32."""
        ...

    def close(self) -> None:
        """Free what the backend holds; calling it twice is harmless, any other use is a BackendError."""
        ...


class LanguageBackend(Protocol):
    """A language model with one growing context, of which `Context` is the only user.

    Attributes:
        name: for people, with what was chosen: "llamacpp q8_0, f16 KV".
        vocab_size: columns of the logits.
        hidden_size: columns of an embedding segment.
        context_length: positions the context holds at most.
    """

    name: str
    vocab_size: int
    hidden_size: int
    context_length: int

    def evaluate(
        self, segment: Segment, position: int, *, all_logits: bool = False
    ) -> npt.NDArray[np.float32] | None:
        """Append a segment at `position`, which is the number of positions evaluated so far.

        Returns:
            logits [n, vocab] of every row where `all_logits`, else None.

        Raises:
            BackendError: the segment does not fit (`check_segment`), or the evaluation failed; what the
                context holds is then unknown until `truncate(0)`.
        """
        ...

    def last_logits(self) -> npt.NDArray[np.float32]:
        """Logits [vocab] after the last row evaluated; the caller may keep and change them.

        Raises:
            BackendError: nothing was evaluated, or not since the context was cut.
        """
        ...

    def truncate(self, position: int) -> None:
        """Forget everything from `position` on: 0 empties the context, the end or past it changes nothing."""
        ...

    def close(self) -> None:
        """Free what the backend holds; calling it twice is harmless, any other use is a BackendError."""
        ...


@runtime_checkable
class KeepsState(Protocol):
    """A language backend whose context can be given away and put back, in another process too."""

    def save_state(self) -> bytes:
        """Everything that the context holds; what is put back computes on with the same bits.

        But for a cache of 8 bits on OpenVINO, which gives it away as floats and rounds them anew.
        """
        ...

    def load_state(self, state: bytes, positions: int) -> None:
        """Put a saved context in the place of this one, cut at `positions`, of which there must be as many.

        Raises:
            BackendError: it cannot be put back; the context is empty then.
        """
        ...


class StoppedError(BackendError):
    """An evaluation ended because somebody asked for it; what the context holds is unknown."""


class StopFlag:
    """Set by any thread to end what another one computes.

    Attributes:
        memory: a C string, empty until the flag is set: a library looks at it without Python's lock.
    """

    def __init__(self) -> None:
        self.memory = ctypes.create_string_buffer(64)

    @property
    def is_set(self) -> bool:
        """Whether it was set."""
        return self.memory[0] != b"\0"

    def set(self) -> None:
        """End it; it stays set."""
        self.memory[0] = b"\1"


@runtime_checkable
class Stoppable(Protocol):
    """A language backend whose `evaluate` can be ended while it computes."""

    def heed(self, flag: StopFlag | None) -> None:
        """From now on end `evaluate` with `StoppedError` soon after the flag is set; None heeds none."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A language backend that can be several, which compute together."""

    def divide(self, count: int) -> "Sequence[LanguageBackend]":
        """So many backends over the same weights, each with a context as long, for a thread each.

        This one evaluates no more then, and is closed after them.

        Raises:
            BackendError: there is no memory for it; this one is of no use then.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """What a user may ask of a backend when it is opened.

    Attributes:
        vision: name of the vision variant, or None for what the preset takes.
        tokens: budget of visual tokens of a picture, or None for that of `vision`, or the bundle's largest.
        language: name of the language variant, likewise.
        preset: a name of `presets.PRESETS` for the variants that are not named; None for "balanced".
        kv_type: type of the KV cache, one of `KV_TYPES`, or None for the runtime's own; a runtime that has
            only one refuses the others.
        context_length: positions of the context, or None for `LanguageSpec.default_context_length`.
        threads: threads of either engine, which never work at the same time; None for the usable cores.
        gpu_layers: layers of the language model on the GPU, 0 for none; None for all, or as many as fit.
        main_gpu: number of the one GPU to take; None for all of them.
        flash_attention: one of `FLASH_ATTENTION`, or None for what the KV type has. The runtimes that have no
            llama.cpp refuse this one and the two above.
        device: number of the GPU for the vision engine, as CUDA counts them, where several are there.
        checkpoint: where the weights are, for a runtime that computes from the checkpoint itself; refused by
            every other one, as are the next two.
        sources: where the configs are that the checkpoint only names.
        allow_pickle: whether the checkpoint's `.bin` files may be read.
    """

    vision: str | None = None
    tokens: int | None = None
    language: str | None = None
    preset: str | None = None
    kv_type: str | None = None
    context_length: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    main_gpu: int | None = None
    flash_attention: str | None = None
    device: int = 0
    checkpoint: Path | None = None
    sources: Path | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        """Refuse values no runtime has: a UsageError with the option, its value and what is allowed."""
        choices = (("kv_type", KV_TYPES), ("flash_attention", FLASH_ATTENTION), ("preset", tuple(PRESETS)))
        for name, known in choices:
            value = getattr(self, name)
            if value not in (None, *known):
                raise UsageError(f"{name} is {value!r}; known: {', '.join(known)}.")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}; it must be {least} or more.")
        if (self.threads or 1) > MAX_THREADS:
            raise UsageError(f"threads is {self.threads}; {MAX_THREADS} at most.")

    def positions(self, spec: LanguageSpec) -> int:
        """Positions of the context to make; more than the model was made for are a UsageError."""
        if self.context_length is not None and self.context_length > spec.context_length:
            raise UsageError(
                f"a context of {self.context_length} positions was asked for, the model was made for "
                f"{spec.context_length}."
            )
        return self.context_length or spec.default_context_length

    def check_without_llamacpp(self, runtime: str, kv_types: tuple[str, ...] = ("f32",)) -> None:
        """What only llama.cpp has is a UsageError, and a KV cache that is none of the runtime's."""
        for name in ("gpu_layers", "main_gpu", "flash_attention"):
            if getattr(self, name) is not None:
                raise UsageError(f"runtime {runtime} has no llama.cpp. Leave --{name.replace('_', '-')} out.")
        if self.kv_type not in (None, *kv_types):
            raise UsageError(
                f"runtime {runtime} has no {self.kv_type} KV cache, only {' or '.join(kv_types)}. "
                "Leave --kv-type out."
            )


VisionOpener = Callable[[Bundle, BackendOptions], VisionBackend]
LanguageOpener = Callable[[Bundle, BackendOptions], LanguageBackend]
# Graph, name of its inner value, threads -> pixels to that value, as the backend computes it.
GraphTap = Callable[[Path, str, int | None], Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]]


def check_open(name: str, is_open: bool) -> None:
    """A BackendError for a backend that was closed, whose memory may belong to somebody else by now."""
    if not is_open:
        raise BackendError(f"{name}: the model is closed. Open the bundle again.")


def check_segment(backend: LanguageBackend, segment: Segment, position: int, expected: int) -> None:
    """Refuse a segment that does not continue a context of `expected` positions.

    Raises:
        BackendError: position, shape, type, ids or length are wrong; the message says what was expected.
    """
    if position != expected:
        raise BackendError(f"{backend.name}: the next position is {expected}, not {position}.")
    is_ids = segment.ndim == 1 and segment.dtype == np.int32
    is_rows = segment.ndim == 2 and segment.dtype == np.float32 and segment.shape[1] == backend.hidden_size
    if not (is_ids or is_rows) or len(segment) == 0:
        raise BackendError(
            f"{backend.name}: expected token ids [n] int32 or embeddings [n, {backend.hidden_size}] float32, "
            f"n > 0; found {list(segment.shape)} {segment.dtype}."
        )
    if is_ids and (segment.min() < 0 or segment.max() >= backend.vocab_size):
        raise BackendError(f"{backend.name}: token ids must be 0 to {backend.vocab_size - 1}.")
    if position + len(segment) > backend.context_length:
        raise BackendError(
            f"{backend.name}: {position} + {len(segment)} positions do not fit in a context of "
            f"{backend.context_length}."
        )


def check_pixels(name: str, pixels: npt.NDArray[np.float32], image_size: int) -> None:
    """A BackendError for pixels whose shape or type is not what the vision graph takes."""
    wanted = (3, image_size, image_size)
    if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != wanted or len(pixels) == 0:
        raise BackendError(
            f"{name}: expected pixels [batch, 3, {image_size}, {image_size}] float32, batch > 0; "
            f"found {list(pixels.shape)} {pixels.dtype}."
        )


def check_embeddings(name: str, embeddings: npt.NDArray[np.float32], shape: tuple[int, int, int]) -> None:
    """A BackendError for embeddings that are not [batch, tokens, hidden] float32."""
    if embeddings.shape != shape or embeddings.dtype != np.float32:
        raise BackendError(
            f"{name}: expected embeddings {[*shape]} float32, found "
            f"{list(embeddings.shape)} {embeddings.dtype}."
        )
