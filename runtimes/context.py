"""What the language backend's context holds, so that no position is evaluated twice.

A prompt is a list of elements: token ids, and pictures as the rows they become. The longest prefix that a new
prompt shares with the context is kept; the rest of the context is dropped, and only the rest of the prompt is
evaluated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from operator import eq

import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import BackendError

from .base import KeepsState, LanguageBackend, Segment, StopFlag, Stoppable, StoppedError
from .store import PictureStore, key_of


@dataclass(frozen=True)
class PictureRows:
    """A picture's embeddings, rows [tokens, hidden]; equal to another one whose pixels were the same."""

    key: bytes
    rows: npt.NDArray[np.float32] = field(compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.rows)


Element = int | PictureRows


def count_positions(elements: Sequence[Element]) -> int:
    """Positions that elements take in the context."""
    return sum(1 if isinstance(element, int) else len(element) for element in elements)


def segments(elements: Sequence[Element]) -> Iterator[Segment]:
    """Neighbouring ids as one array, each picture's rows as one."""
    for is_id, neighbours in groupby(elements, lambda element: isinstance(element, int)):
        if is_id:
            yield np.array(list(neighbours), dtype=np.int32)
        else:
            yield from (element.rows for element in neighbours if isinstance(element, PictureRows))


def _end_of_pictures(elements: Sequence[Element]) -> int:
    """Elements up to the last picture, 0 where there is none."""
    return max(
        (end for end, each in enumerate(elements, start=1) if isinstance(each, PictureRows)), default=0
    )


def _key(elements: Sequence[Element]) -> bytes:
    return key_of([each.key if isinstance(each, PictureRows) else each for each in elements])


class Context:
    """The elements a language backend has evaluated.

    When an evaluation fails or is interrupted, the backend may hold a part of it: the record is emptied, and
    the next prefill starts from nothing.

    Args:
        language: evaluates; nobody else uses its context.
        store: where what a picture becomes outlives the process.
    """

    def __init__(self, language: LanguageBackend, store: PictureStore | None = None) -> None:
        self._language = language
        self._store = store if isinstance(language, KeepsState) else None
        self._elements: list[Element] = []
        self._position = 0

    def prefill(self, prompt: Sequence[Element], stopping: StopFlag | None = None) -> int:
        """Make the context hold exactly `prompt`, with its last logits ready.

        Returns:
            Positions that were there already and were not evaluated again.

        Raises:
            StoppedError: the flag was set.
        """
        common = sum(takewhile(bool, map(eq, self._elements, prompt[:-1])))  # the last one gives the logits
        self._elements = []
        common = self._put_back(prompt, common)
        self._language.truncate(count_positions(prompt[:common]))
        kept = list(prompt[:common])
        reused = count_positions(kept)
        self._elements, self._position = kept, reused
        heeds = self._language if isinstance(self._language, Stoppable) else None
        try:
            if heeds is not None:
                heeds.heed(stopping)
            for element_segment in segments(prompt[common:]):
                if stopping is not None and stopping.is_set:
                    self._elements = []
                    raise StoppedError("interrupted between two parts of the prompt.")
                self._evaluate(element_segment)
        finally:
            if heeds is not None:
                heeds.heed(None)
        self._elements = list(prompt)
        return reused

    def keep(self) -> None:
        """Keep what the context holds up to its last picture, where there is a store that lacks it."""
        beginning = self._elements[: _end_of_pictures(self._elements)]
        if self._store is None or not beginning or self._store.has("context", key := _key(beginning)):
            return
        assert isinstance(self._language, KeepsState)
        self._store.keep("context", key, self._language.save_state())

    def _put_back(self, prompt: Sequence[Element], common: int) -> int:
        """Elements that the context has then: `common`, or more from the store, or none if that fails."""
        end = _end_of_pictures(prompt[:-1])
        state = self._store.read("context", _key(prompt[:end])) if self._store and end > common else None
        if state is None:
            return common
        assert isinstance(self._language, KeepsState)
        try:
            self._language.load_state(state, count_positions(prompt[:end]))
        except BackendError:  # of a longer context than this one, say: it is computed
            return 0
        return end

    def append(self, token: int) -> None:
        """Evaluate one generated token."""
        self._evaluate(np.array([token], dtype=np.int32))
        self._elements.append(token)

    def last_logits(self) -> npt.NDArray[np.float32]:
        """Logits [vocab] after everything in the context."""
        try:
            return self._language.last_logits()
        except BaseException:  # a backend may compute what it was given only now
            self._elements = []
            raise

    def all_logits(self, prompt: Sequence[Element]) -> npt.NDArray[np.float32]:
        """Evaluate `prompt` from nothing; logits [positions, vocab]."""
        self._elements, self._position = [], 0
        self._language.truncate(0)
        return self.extend(prompt)

    def extend(self, elements: Sequence[Element]) -> npt.NDArray[np.float32]:
        """Evaluate what follows; logits [positions, vocab]."""
        parts = [self._evaluate(part, all_logits=True) for part in segments(elements)]
        self._elements += elements
        return np.concatenate([part for part in parts if part is not None])

    def _evaluate(self, segment: Segment, *, all_logits: bool = False) -> npt.NDArray[np.float32] | None:
        try:
            logits = self._language.evaluate(segment, self._position, all_logits=all_logits)
        except BaseException:
            self._elements = []
            raise
        self._position += len(segment)
        return logits
