"""An answer while it is made: what its loop works on, and what the caller holds of it."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from inspect import GEN_CLOSED, getgeneratorstate

from tinyllava_edge.errors import BackendError
from tinyllava_edge.image import Picture
from tinyllava_edge.sampling import Sampler

from .access import Access
from .answer_text import AnswerText
from .context import Element
from .logprobs import Logprobs, TokenLogprob
from .timings import Finish, Stopwatch, Timings


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
        is_cancelled: the answer ends with its next token.
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
    is_cancelled: bool = False
    finish: Finish = "closed"
    timings: Timings | None = None


class Stream(Iterator[str]):
    """Pieces of an answer's text, each computed when it is asked for; closed when it is dropped.

    Attributes:
        pieces: what computes them, for whoever is within a call already.

    Raises:
        BackendError: for the next piece, where another thread's question ended the answer: what was read is
            not all of it.
    """

    def __init__(self, run: Run, pieces: Generator[str, None, None], access: Access) -> None:
        self._run = run
        self.pieces = pieces  # no cycle: `pieces` knows the run, not this stream, so dropping closes it
        self._access = access
        self._reader = threading.get_ident()
        self._is_cut = False

    def __next__(self) -> str:
        with self._access.call():
            self._reader = threading.get_ident()
            if self._is_cut:
                raise BackendError(
                    "another thread asked the model something, which ended this answer. Read answers with "
                    "Model.ask, which waits its turn, or hold a lock from each question to its last piece."
                )
            return next(self.pieces)

    def close(self) -> None:
        """End the answer here; calling it twice is harmless."""
        if self._access.is_here:
            with self._access.call():
                self.pieces.close()

    def cancel(self) -> None:
        """End the answer with the token that is being computed; any thread may say so, and does not wait."""
        self._run.is_cancelled = True

    def end_for_another(self) -> None:
        """End the answer for the next question, within its call; a reader in another thread is told."""
        is_read_elsewhere = self._reader != threading.get_ident()
        self._is_cut = is_read_elsewhere and getgeneratorstate(self.pieces) != GEN_CLOSED
        self.pieces.close()

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
