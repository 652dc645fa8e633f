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

from .base import LanguageBackend, Segment


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


class Context:
    """The elements a language backend has evaluated.

    When an evaluation fails or is interrupted, the backend may hold a part of it: the record is emptied, and
    the next prefill starts from nothing.
    """

    def __init__(self, language: LanguageBackend) -> None:
        self._language = language
        self._elements: list[Element] = []
        self._position = 0

    def prefill(self, prompt: Sequence[Element]) -> int:
        """Make the context hold exactly `prompt`, with its last logits ready.

        Returns:
            Positions that were there already and were not evaluated again.
        """
        common = sum(takewhile(bool, map(eq, self._elements, prompt[:-1])))  # the last one gives the logits
        kept = list(prompt[:common])
        reused = count_positions(kept)
        self._elements = []
        self._language.truncate(reused)
        self._elements, self._position = kept, reused
        for element_segment in segments(prompt[common:]):
            self._evaluate(element_segment)
        self._elements = list(prompt)
        return reused

    def append(self, token: int) -> None:
        """Evaluate one generated token."""
        self._evaluate(np.array([token], dtype=np.int32))
        self._elements.append(token)

    def last_logits(self) -> npt.NDArray[np.float32]:
        """Logits [vocab] after everything in the context."""
        return self._language.last_logits()

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
