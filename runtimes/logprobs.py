"""How likely each token of an answer was, as OpenAI's API says it.

A log-probability is the natural logarithm of the softmax of the model's own logits: before penalties,
temperature, filters and a grammar, so one of the likeliest may be a token that these do not let through.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import UsageError

MAX_TOP = 20  # OpenAI's bound
_CONTEXT = 4  # tokens that a decoder must see to give a token's space, or a character's last byte


@dataclass(frozen=True, kw_only=True)
class Likely:
    """A token, its text behind those before it ("" of a special one), and its log-probability."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True, kw_only=True)
class TokenLogprob(Likely):
    """A generated token, with the most likely ones in its place, the likeliest first."""

    top: tuple[Likely, ...]


@dataclass
class Logprobs:
    """Those of one answer.

    Args:
        decode: ids -> text.
        top: how many of the most likely tokens to keep with each, 0 to 20.

    Raises:
        UsageError: `top` is out of range.
    """

    decode: Callable[[Sequence[int]], str]
    top: int
    entries: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        if isinstance(self.top, bool) or not isinstance(self.top, int) or not 0 <= self.top <= MAX_TOP:
            raise UsageError(f"logprobs is {self.top!r}; it must be 0 to {MAX_TOP}, the likeliest to show.")

    def add(self, token: int, logits: npt.NDArray[np.float32]) -> None:
        """The next token was chosen, from these logits [vocab] of the model."""
        scores = logits.astype(np.float64)
        scores -= scores.max()
        scores -= np.log(np.exp(scores).sum())
        best = np.argpartition(-scores, min(self.top, scores.size - 1))[: self.top]
        before = [entry.id for entry in self.entries[-_CONTEXT:]]
        self.entries.append(
            TokenLogprob(
                id=token,
                text=self._text(before, token),
                logprob=float(scores[token]),
                top=tuple(
                    Likely(id=int(id_), text=self._text(before, int(id_)), logprob=float(scores[id_]))
                    for id_ in best[np.argsort(-scores[best], kind="stable")]
                ),
            )
        )

    def _text(self, before: list[int], token: int) -> str:
        """A decoder drops the space of a text's first token, and joins bytes to characters."""
        return self.decode([*before, token]).removeprefix(self.decode(before))
