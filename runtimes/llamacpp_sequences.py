"""Several sequences of one llama.cpp context, decoded together: one row of each in the same batch.

Each sequence is a `LanguageBackend` of its own for a thread of its own. A thread that wants rows evaluated
waits for a moment for the other threads that are about to want some, and the last one to come decodes for
all. A batch holds token ids of many sequences, or the embeddings of one. What a row becomes in a batch of
several may differ from what it becomes alone by the rounding of another kernel.
"""

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import BackendError
from tinyllava_edge.llamacpp_memory import BATCH, OUTPUT_ROWS

from .base import Segment, StopFlag, StoppedError, check_open, check_segment

if TYPE_CHECKING:
    from .llamacpp import LlamaCppLanguage

_LONGEST_WAIT_S = 0.02  # for a thread that is about to come
_Logits = npt.NDArray[np.float32]


@dataclass(eq=False, kw_only=True)
class Part:
    """Rows of one sequence that are to be evaluated.

    Attributes:
        sequence: its number.
        rows: ids [n] or embeddings [n, hidden].
        position: of the first one.
        wanted: rows, from the end, of which the logits are wanted.
        logits: those, [wanted, vocab]; None until they are there.
        fault: why they are not.
    """

    sequence: int
    rows: Segment
    position: int
    wanted: int
    logits: _Logits | None = None
    fault: Exception | None = field(default=None, repr=False)

    @property
    def is_done(self) -> bool:
        """Whether there is an end of it, good or bad."""
        return self.logits is not None or self.fault is not None


class Sequences:
    """The sequences of a language's context, and whose turn it is to decode for all.

    Args:
        language: whose context has so many sequences, and is used by nobody else.
        count: how many.

    Attributes:
        steps: batches that were decoded.
        rows: rows in them.
    """

    def __init__(self, language: "LlamaCppLanguage", count: int) -> None:
        self.language = language
        self.steps = self.rows = 0
        self._turn = Condition()
        self._busy = False
        self._waiting: list[Part] = []
        self._ended_s = [float("-inf")] * count  # when each had its last rows
        self._step_s = 0.0
        self._batch = SequencesBatch(language.bindings, count)
        self.languages = [SequenceLanguage(self, number) for number in range(count)]

    def run(self, part: Part) -> _Logits:
        """Evaluate a part, with those of other threads; a BackendError where that fails."""
        with self._turn:
            self._waiting.append(part)
            self._turn.notify_all()
            while not part.is_done:
                pause_s = None if self._busy else self._pause_s()
                if pause_s is None or pause_s > 0:
                    self._turn.wait(pause_s)
                else:
                    self._step()
        if part.fault is not None:
            raise part.fault
        assert part.logits is not None
        return part.logits

    @contextmanager
    def alone(self) -> Iterator[None]:
        """With the context to oneself."""
        with self._turn:
            while self._busy:
                self._turn.wait()
            yield

    def _pause_s(self) -> float:
        """How long to wait for those who had rows a moment ago, and will want more at once."""
        waiting = {part.sequence for part in self._waiting}
        window_s = min(_LONGEST_WAIT_S, self._step_s / 2) - time.monotonic()
        return max(
            (ended + window_s for number, ended in enumerate(self._ended_s) if number not in waiting),
            default=0.0,
        )

    def _step(self) -> None:
        """Decode what waits, as far as it fits into a batch; the others wait meanwhile."""
        parts = self._pick()
        began, logits = time.monotonic(), list[_Logits]()
        fault: Exception | None = None
        self._busy = True
        self._turn.release()
        try:
            logits = self._decode(parts)
        except Exception as error:  # all of them have it
            fault = error
        except BaseException:
            fault = BackendError(f"{self.language.name}: the batch was interrupted. Ask again.")
            raise
        finally:
            self._turn.acquire()
            self._busy = False
            now = time.monotonic()
            self._step_s = now - began
            for number, part in enumerate(parts):
                part.logits, part.fault = (None, fault) if fault else (logits[number], None)
                self._ended_s[part.sequence] = now
            self._turn.notify_all()

    def _pick(self) -> list[Part]:
        """The part that waits longest and, where it has ids, the others that have and fit."""
        parts, rows, wanted = [self._waiting[0]], len(self._waiting[0].rows), self._waiting[0].wanted
        for part in self._waiting[1:]:
            is_alike = part.rows.ndim == 1 == parts[0].rows.ndim
            if is_alike and rows + len(part.rows) <= BATCH and wanted + part.wanted <= OUTPUT_ROWS:
                parts.append(part)
                rows, wanted = rows + len(part.rows), wanted + part.wanted
        self._waiting = [part for part in self._waiting if part not in parts]
        return parts

    def _decode(self, parts: list[Part]) -> list[_Logits]:
        self._batch.fill(parts)
        self.steps, self.rows = self.steps + 1, self.rows + sum(len(part.rows) for part in parts)
        return self.language.decode_batch(self._batch.struct, [part.wanted for part in parts])


class SequenceLanguage:
    """One sequence; see `LanguageBackend`, `KeepsState` and `Stoppable`."""

    def __init__(self, sequences: Sequences, number: int) -> None:
        owner = sequences.language
        self.name, self.build, self.gpu_sm, self.note = owner.name, owner.build, owner.gpu_sm, owner.note
        self.vocab_size, self.hidden_size = owner.vocab_size, owner.hidden_size
        self.context_length, self.compute_class = owner.context_length, owner.compute_class
        self._sequences, self._number = sequences, number
        self._position = 0
        self._logits: _Logits | None = None
        self._flag: StopFlag | None = None
        self._is_open = True

    def evaluate(self, segment: Segment, position: int, *, all_logits: bool = False) -> _Logits | None:
        """See `LanguageBackend`."""
        check_open(self.name, self._is_open)
        check_segment(self, segment, position, self._position)
        self._logits = None
        found = []
        step = OUTPUT_ROWS if all_logits else BATCH
        for start in range(0, len(segment), step):
            if self._flag is not None and self._flag.is_set:
                raise StoppedError(f"{self.name}: interrupted at position {position + start}.")
            rows = segment[start : start + step]
            is_last = start + len(rows) == len(segment)
            wanted = len(rows) if all_logits else int(is_last)
            part = Part(sequence=self._number, rows=rows, position=position + start, wanted=wanted)
            found.append(self._sequences.run(part))
        self._position = position + len(segment)
        self._logits = found[-1][-1]
        return np.concatenate(found) if all_logits else None

    def last_logits(self) -> _Logits:
        """See `LanguageBackend`."""
        check_open(self.name, self._is_open)
        if self._logits is None:
            raise BackendError(f"{self.name}: nothing was evaluated, so there are no logits.")
        return self._logits.copy()

    def truncate(self, position: int) -> None:
        """See `LanguageBackend`."""
        check_open(self.name, self._is_open)
        if position >= self._position and position > 0:
            return
        with self._sequences.alone():
            self._sequences.language.cut(self._number, position)
        self._position, self._logits = position, None

    def heed(self, flag: StopFlag | None) -> None:
        """See `Stoppable`; between two batches, as others are in the same one."""
        self._flag = flag

    def save_state(self) -> bytes:
        """See `KeepsState`."""
        check_open(self.name, self._is_open)
        with self._sequences.alone():
            return self._sequences.language.state_of(self._number)

    def load_state(self, state: bytes, positions: int) -> None:
        """See `KeepsState`."""
        check_open(self.name, self._is_open)
        self._position, self._logits = 0, None
        with self._sequences.alone():
            self._sequences.language.put_state(self._number, state, positions)
        self._position = positions

    def close(self) -> None:
        """See `LanguageBackend`; the context is freed with the language that it is of."""
        self._is_open = False


class SequencesBatch:
    """A `llama_batch` of rows of several sequences."""

    def __init__(self, library: object, count: int) -> None:
        self._tokens = np.zeros(BATCH, dtype=np.int32)
        self._positions = np.zeros(BATCH, dtype=np.int32)
        self._wanted = np.zeros(BATCH, dtype=np.int8)
        self._ones = np.ones(BATCH, dtype=np.int32)
        self._rows = np.empty((0, 0), dtype=np.float32)  # keeps the embeddings alive while they are read
        self._numbers = [ctypes.pointer(ctypes.c_int32(number)) for number in range(count)]
        self._sequences = (ctypes.POINTER(ctypes.c_int32) * BATCH)()
        self.struct = library.llama_batch()  # type: ignore[attr-defined]
        self.struct.pos = _pointer(self._positions, ctypes.c_int32)
        self.struct.n_seq_id = _pointer(self._ones, ctypes.c_int32)
        self.struct.seq_id = self._sequences
        self.struct.logits = _pointer(self._wanted, ctypes.c_int8)
        self._token_pointer = _pointer(self._tokens, ctypes.c_int32)

    def fill(self, parts: list[Part]) -> None:
        """Put parts in, one behind the other: ids of any number, or the embeddings of one."""
        at = 0
        for part in parts:
            end = at + len(part.rows)
            self._positions[at:end] = np.arange(part.position, part.position + len(part.rows))
            self._wanted[at:end] = 0
            self._wanted[end - part.wanted : end] = 1
            self._sequences[at:end] = [self._numbers[part.sequence]] * len(part.rows)
            if part.rows.ndim == 1:
                self._tokens[at:end] = part.rows
            at = end
        self.struct.n_tokens = at
        if parts[0].rows.ndim == 1:
            self.struct.token, self.struct.embd = self._token_pointer, None
        else:
            self._rows = np.ascontiguousarray(parts[0].rows, dtype=np.float32)
            self.struct.token, self.struct.embd = None, _pointer(self._rows, ctypes.c_float)


def _pointer(array: npt.NDArray[np.generic], kind: type) -> object:
    return array.ctypes.data_as(ctypes.POINTER(kind))
