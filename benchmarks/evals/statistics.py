"""How sure a share of right answers is, and a difference of two.

Questions about one picture are not independent: pictures are drawn, with all their questions. Sources:
docs/sources/measuring.md#intervals-of-accuracy.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
ONE_POINT = 0.01
_Z95 = 1.96
_Z_POWER = 1.959963984540054 + 0.8416212335729143  # normal quantiles of 0.975, and of 0.8
_SAME = 1e-12  # of two means, but for rounding
Array = npt.NDArray[np.float64]


def interval(values: Array, clusters: Sequence[str], least: float = 0.0) -> tuple[float, float]:
    """95 % percentile interval of the mean; pictures are drawn with replacement, with all their questions.

    Where all pictures have one mean, as where every answer is right, each draw has it too: then the interval
    is what pictures of another mean, `least` or 1, would make of it, by Wilson's bound on how many there are.

    Args:
        values: one of each question, between `least` and 1.
        clusters: the picture of each.
        least: that a value can be.
    """
    sums, counts = _by_cluster(values, clusters)
    draws = np.random.default_rng(0).integers(0, len(sums), size=(RESAMPLES, len(sums)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    if high - low > _SAME:
        return float(low), float(high)
    others = _unseen(len(sums))
    return float(low - others * (low - least)), float(high + others * (1.0 - high))


def paired(first: Array, other: Array, clusters: Sequence[str]) -> dict[str, Any]:
    """The difference of two variants' credits on the same questions.

    Returns:
        `difference` of the means, other less first; its `difference_ci95` and standard error `difference_se`,
        both clustered by picture; `mcnemar`: questions that only the first (`first`) or only the other one
        (`other`) has right, or more of, and the exact two-sided `p` of that; `questions_for_one_point`: how
        many such questions would show a difference of one point, with power 0.8 at the level of 5 %.
    """
    difference = other - first
    worse, better = int((difference < -_SAME).sum()), int((difference > _SAME).sum())
    error = standard_error(difference, clusters)
    return {
        "difference": float(difference.mean()),
        "difference_ci95": list(interval(difference, clusters, least=-1.0)),
        "difference_se": error,
        "mcnemar": {"first": worse, "other": better, "p": exact_mcnemar(worse, better)},
        "questions_for_one_point": questions_for(ONE_POINT, difference, clusters),
    }


def standard_error(values: Array, clusters: Sequence[str]) -> float:
    """Of the mean, with clusters' sums in the place of questions; 0 for a single cluster."""
    sums, _ = _by_cluster(values - values.mean(), clusters)
    num = len(sums)
    return math.sqrt(num / (num - 1) * float((sums**2).sum())) / len(values) if num > 1 else 0.0


def exact_mcnemar(first: int, other: int) -> float:
    """Two-sided p of so many discordant pairs each way, were both ways as likely: a sign test.

    It takes questions for independent, as the interval does not.
    """
    num, ways, tail = first + other, 1, 1
    for k in range(min(first, other)):
        ways = ways * (num - k) // (k + 1)  # of choosing k + 1
        tail += ways
    return float(min(1.0, 2 * tail / 2**num))


def questions_for(difference: float, values: Array, clusters: Sequence[str]) -> int:
    """Questions, in pictures as these, of which a mean of `difference` is shown with power 0.8 at 5 %.

    Where no two answers differed, a share of them is taken to, which Wilson's bound still allows.
    """
    variance = len(values) * standard_error(values, clusters) ** 2
    if variance <= _SAME:
        variance = _unseen(len(set(clusters)))
    return math.ceil(variance * (_Z_POWER / difference) ** 2)


def _unseen(num: int) -> float:
    """Wilson's upper bound of a share of which none was seen in so many."""
    return _Z95**2 / (num + _Z95**2)


def _by_cluster(values: Array, clusters: Sequence[str]) -> tuple[Array, Array]:
    """Sums and numbers of each cluster's values."""
    _, inverse = np.unique(np.array(clusters), return_inverse=True)
    sums: Array = np.bincount(inverse, weights=values).astype(np.float64)
    return sums, np.bincount(inverse).astype(np.float64)
