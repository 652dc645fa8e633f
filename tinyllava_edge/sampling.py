"""Logits -> one token, in numpy.

Penalties come first, at temperature 0 too. Repetition's is over the ids of the prompt's text and the answer
(a picture's rows have no ids), as transformers' RepetitionPenaltyLogitsProcessor has it over its `input_ids`;
frequency's and presence's are over the answer alone, as OpenAI's. Filters run in the order of transformers'
`generate`, which upstream answers with: temperature, top-k, top-p, min-p. llama.cpp's own samplers divide by
the temperature last, so equal settings keep other tokens there. Equal logits at a filter's edge are all kept:
the outcome does not depend on how a sort breaks ties.

Sources: top-k, Fan et al. 2018 (arXiv 1805.04833); top-p, Holtzman et al. 2020 (arXiv 1904.09751); min-p,
Nguyen et al. 2024 (arXiv 2407.01082); repetition, Keskar et al. 2019 (CTRL, arXiv 1909.05858); the other two,
OpenAI's API reference, "Frequency and presence penalties".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import BackendError, UsageError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; the filters and the seed are then without effect.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probabilities reach p; 1 keeps all.
        min_p: keep tokens at least p times as likely as the most likely one; 0 keeps all.
        seed: of the random numbers; None takes a new one each time.
        repetition_penalty: divides the logits of ids that were there, multiplies negative ones; 1 is none.
        frequency_penalty: taken from a logit for each time that its token was generated; 0 is none.
        presence_penalty: taken from the logit of each token that was generated; 0 is none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            UsageError: names the setting, its value and its range.
        """
        ranges = (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "over 0, up to 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "over 0"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "-2 to 2"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "-2 to 2"),
        )
        for name, inside, allowed in ranges:
            if not inside:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be {allowed}.")


class Constraint(Protocol):
    """Which tokens may come next in one answer: a grammar's."""

    def allows(self, token: int) -> bool:
        """Whether it may come next; quicker than `mask`."""
        ...

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """Set the logits [vocab] of tokens that may not come next to -inf, in place."""
        ...

    def accept(self, token: int) -> None:
        """It comes next; it must be allowed."""
        ...


class Sampler:
    """Chooses the tokens of one answer; the same settings, seed and logits give the same tokens.

    Args:
        how: the settings.
        prompt_ids: of the prompt's text, for the repetition penalty.
        constraint: what may come next; None for everything.
    """

    def __init__(
        self, how: Sampling, prompt_ids: Sequence[int] = (), constraint: Constraint | None = None
    ) -> None:
        self._how = how
        self._constraint = constraint
        self._generator = np.random.default_rng(how.seed) if how.temperature else None
        neutral = (how.repetition_penalty, how.frequency_penalty, how.presence_penalty) == (1, 0, 0)
        self._penalties = None if neutral else _Penalties(how, prompt_ids)

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose the next token's id from logits [vocab], which stay as they are; it counts as generated.

        Where its constraint does not allow the token, it chooses again among those allowed, as llama.cpp's
        programs do: a filter then keeps k tokens, or the probability p, of the allowed ones.

        Raises:
            BackendError: the logits have a NaN, or nothing finite.
        """
        best = int(np.argmax(logits))  # argmax finds a NaN where there is one
        if not np.isfinite(logits[best]):
            raise BackendError(
                f"the language model's logits are not finite (token {best}: {logits[best]}). "
                "The weights are damaged or this precision overflows; try another language variant."
            )
        if self._penalties is not None:
            logits = self._penalties.applied(logits)
        token = self._draw(logits)
        if self._constraint is not None:
            if not self._constraint.allows(token):
                logits = logits.copy()
                self._constraint.mask(logits)
                token = self._draw(logits)
            self._constraint.accept(token)
        if self._penalties is not None:
            self._penalties.count(token)
        return token

    def _draw(self, logits: npt.NDArray[np.float32]) -> int:
        if self._generator is None:
            return int(np.argmax(logits))
        cumulative = np.cumsum(probabilities(logits, self._how))
        return int(np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right"))


class _Penalties:
    """Those of one answer, over the ids seen so far; ids that the logits lack count as none."""

    def __init__(self, how: Sampling, prompt_ids: Sequence[int]) -> None:
        self._how = how
        self._seen = set(prompt_ids)
        self._generated: dict[int, int] = {}

    def count(self, token: int) -> None:
        """A token was generated."""
        self._seen.add(token)
        self._generated[token] = self._generated.get(token, 0) + 1

    def applied(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits [vocab] after the penalties."""
        logits, how = logits.copy(), self._how
        if how.repetition_penalty != 1:
            seen = np.array([token for token in self._seen if token < logits.size], dtype=np.int64)
            there = logits[seen]
            logits[seen] = np.where(there < 0, there * how.repetition_penalty, there / how.repetition_penalty)
        if self._generated:
            ids = np.fromiter(self._generated.keys(), np.int64)
            times = np.fromiter(self._generated.values(), np.float64)
            logits[ids] -= times * how.frequency_penalty + how.presence_penalty
        return logits


def probabilities(logits: npt.NDArray[np.float32], how: Sampling) -> npt.NDArray[np.float64]:
    """Probabilities [vocab] after the filters, of logits [vocab]; the temperature must not be 0."""
    scores = logits.astype(np.float64) / how.temperature
    if 0 < how.top_k < scores.size:
        kth = np.partition(scores, -how.top_k)[-how.top_k]
        scores[scores < kth] = -np.inf
    kept: npt.NDArray[np.float64] = np.exp(scores - scores.max())
    kept /= kept.sum()
    if how.top_p < 1:
        descending = np.sort(kept)[::-1]
        last = int(np.searchsorted(np.cumsum(descending), how.top_p))  # first to reach top_p
        kept[kept < descending[min(last, kept.size - 1)]] = 0
    if how.min_p > 0:
        kept[kept < how.min_p * kept.max()] = 0
    kept /= kept.sum()
    return kept
