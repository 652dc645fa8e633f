"""An answer while it is made: what its loop works on, and what the caller holds of it."""

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from inspect import GEN_CLOSED, getgeneratorstate

from tinyllava_edge.errors import BackendError
from tinyllava_edge.image import Picture
from tinyllava_edge.sampling import Sampler

from .access import Access
from .answer_text import AnswerText
from .base import StopFlag
from .context import Element
from .logprobs import Logprobs, TokenLogprob
from .timings import Finish, Stopwatch, Timings

IDLE_S = 60.0  # a stream that nobody reads for so long is ended when another thread asks
_SHOWN = 40  # characters of an answer


@dataclass(kw_only=True)
class Run:
    """One answer while it is made.

    Attributes:
        prompt: its elements; -200 stands for each of `pictures` until they are encoded.
        pictures: those the prompt does not hold yet, in order.
        max_tokens: most tokens of the answer.
        sampler: chooses them.
        text: what they say.
        stopwatch: started when the answer was asked for.
        logprobs: of its tokens, where they are wanted.
        on_end: called when nothing more comes, except after an error or before the first token.
        ids: the tokens so far.
        stopping: set where the answer is to end with its next token, or before its first.
        finish: what ended the answer, "closed" until something did.
        timings: None until nothing more comes.
    """

    prompt: Sequence[Element]
    pictures: Sequence[Picture]
    max_tokens: int
    sampler: Sampler
    text: AnswerText
    stopwatch: Stopwatch
    on_end: Callable[["Run"], None]
    logprobs: Logprobs | None = None
    ids: list[int] = field(default_factory=list)
    stopping: StopFlag = field(default_factory=StopFlag)
    finish: Finish = "closed"
    timings: Timings | None = None


class Stream(Iterator[str]):
    """Pieces of an answer's text, each computed when it is asked for; closed when it is dropped.

    Attributes:
        pieces: what computes them, for whoever is within a call already.

    Raises:
        BackendError: for the next piece, where the model was closed, or another thread asked after nobody had
            read for `IDLE_S`: what was read is not all of it.
    """

    def __init__(self, run: Run, pieces: Generator[str, None, None], access: Access) -> None:
        self._run = run
        self.pieces = pieces  # no cycle: `pieces` knows the run, not this stream, so dropping closes it
        self._access = access
        self._reader = threading.current_thread()
        self._read_at = time.monotonic()
        self._is_cut = False

    def __next__(self) -> str:
        with self._access.call():
            self._reader = threading.current_thread()
            if self._is_cut:
                raise BackendError(
                    "another thread closed the model, or asked it something after nobody had read on for "
                    f"{IDLE_S:g} s, which ended this answer. Read an answer to its end, or with Model.ask."
                )
            try:
                return next(self.pieces)
            finally:
                self._read_at = time.monotonic()
                if not self.is_open:
                    self._access.tell()

    def close(self) -> None:
        """End the answer here; calling it twice is harmless."""
        if self._access.is_here:
            with self._access.call():
                self.pieces.close()
                self._access.tell()

    @property
    def is_open(self) -> bool:
        """Whether more may come."""
        return getgeneratorstate(self.pieces) != GEN_CLOSED

    @property
    def is_read_elsewhere(self) -> bool:
        """Whether another thread that lives asked for it, or read of it last, and not too long ago."""
        reader = self._reader
        is_alive = reader.is_alive() and reader.ident in sys._current_frames()  # is_alive() of a foreign one
        recently = time.monotonic() - self._read_at < IDLE_S
        return self.is_open and reader is not threading.current_thread() and is_alive and recently

    def cancel(self) -> None:
        """End the answer with the token, or the prompt, that is being computed.

        Any thread may say so, and does not wait.
        """
        self._run.stopping.set()

    def end_for_another(self) -> None:
        """End the answer for the next question, within its call; a reader in another thread is told."""
        self._is_cut = self.is_open and self._reader is not threading.current_thread()
        self.pieces.close()
        self._access.tell()

    def __repr__(self) -> str:
        state = f"ended by {self.finish}" if self.finish else "open" if self.is_open else "ended"
        return f"<Stream {state}, {len(self._run.ids)} tokens: {self.text[:_SHOWN]!r}>"

    @property
    def text(self) -> str:
        """All pieces so far."""
        return self._run.text.text

    @property
    def ids(self) -> list[int]:
        """Token ids so far, the one that ended the answer left out."""
        return list(self._run.ids)

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """One entry for each of `ids`: see `logprobs.py`; None where they were not asked for."""
        return None if self._run.logprobs is None else list(self._run.logprobs.entries)

    @property
    def timings(self) -> Timings | None:
        """None until the answer has ended, and where it was closed before its first token."""
        return self._run.timings

    @property
    def finish(self) -> Finish | None:
        """What ended the answer, likewise."""
        return None if self.timings is None else self.timings.finish
