"""Logits -> one token, in numpy.

Filters run in the order of transformers' `generate`, which upstream answers with: temperature, top-k, top-p,
min-p. llama.cpp's own samplers divide by the temperature last, so equal settings keep other tokens there.
Equal logits at a filter's edge are all kept: the outcome does not depend on how a sort breaks ties.

Sources: top-k, Fan et al. 2018 (arXiv 1805.04833); top-p, Holtzman et al. 2020 (arXiv 1904.09751); min-p,
Nguyen et al. 2024 (arXiv 2407.01082).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import BackendError, UsageError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; every other setting is then without effect.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probabilities reach p; 1 keeps all.
        min_p: keep tokens at least p times as likely as the most likely one; 0 keeps all.
        seed: of the random numbers; None takes a new one each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

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
        )
        for name, inside, allowed in ranges:
            if not inside:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be {allowed}.")


class Sampler:
    """Chooses the tokens of one answer; the same settings, seed and logits give the same tokens."""

    def __init__(self, how: Sampling) -> None:
        self._how = how
        self._generator = np.random.default_rng(how.seed) if how.temperature else None

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token id from logits [vocab].

        Raises:
            BackendError: the logits have a NaN, or nothing finite.
        """
        best = int(np.argmax(logits))  # argmax finds a NaN where there is one
        if not np.isfinite(logits[best]):
            raise BackendError(
                f"the language model's logits are not finite (token {best}: {logits[best]}). "
                "The weights are damaged or this precision overflows; try another language variant."
            )
        if self._generator is None:
            return best
        cumulative = np.cumsum(probabilities(logits, self._how))
        return int(np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right"))


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
