"""Ratios of two cells' times with an interval, and what may be claimed from them.

Source: docs/sources/measuring.md#interleaved-pairs, with what such an interval is worth on a noisy machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
PRACTICAL_MARGIN = 0.03  # a difference below 3 % is not worth a claim
PERCENTILE_90_RUNS = 64  # docs/sources/measuring.md#a-90th-percentile
Sessions = Sequence[Sequence[Sequence[float]]]  # times in ms: two of each block of each session
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """How many times faster a cell is than the one it is compared with, with a 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """faster, slower, equivalent or inconclusive.

        A difference is claimed only where the interval excludes 1 and the ratio is off by the margin.
        """
        matters = abs(self.ratio - 1) >= PRACTICAL_MARGIN
        if matters and self.low > 1:
            return "faster"
        if matters and self.high < 1:
            return "slower"
        if self.low >= 1 - PRACTICAL_MARGIN and self.high <= 1 + PRACTICAL_MARGIN:
            return "equivalent"
        return "inconclusive"


def paired_ratio(baseline: Sessions, cell: Sessions, *, seed: int = 0) -> Ratio | None:
    """exp(median(log(baseline / cell))) over neighbouring pairs; None where they have no block in common.

    The interval is that of a bootstrap in two steps: sessions are drawn, and blocks within each. What differs
    between two processes of one program (where its memory lies, say) does not shrink with more blocks.

    Args:
        baseline: times of the cell compared with.
        cell: times of the other one in the same sessions and blocks; fewer where it, or all, ended early.
        seed: of the bootstrap.
    """
    logs = [
        _logs(theirs[: len(ours)]) - _logs(ours[: len(theirs)])
        for theirs, ours in zip(baseline, cell, strict=False)
        if ours and theirs
    ]
    if not logs:
        return None
    return _interval(_median(logs), _resampled_medians(logs, np.random.default_rng(seed)))


def unpaired_ratio(baseline: Sessions, cell: Sessions, *, seed: int = 0) -> Ratio:
    """The ratio of the medians of two measurements that have nothing in common, each drawn by itself."""
    rng = np.random.default_rng(seed)
    ours, theirs = ([_logs(session) for session in each if session] for each in (cell, baseline))
    medians = _resampled_medians(theirs, rng) - _resampled_medians(ours, rng)
    return _interval(_median(theirs) - _median(ours), medians)


def _logs(blocks: Sequence[Sequence[float]]) -> Array:
    """[blocks, 2]."""
    logs: Array = np.log(np.array(blocks, dtype=np.float64))
    assert logs.shape[1:] == (2,), "every block has two runs"
    return logs


def _median(logs: Sequence[Array]) -> float:
    return float(np.median(np.concatenate(logs)))


def _resampled_medians(logs: Sequence[Array], rng: np.random.Generator) -> Array:
    """Medians of `RESAMPLES` drawings of sessions, and of blocks within each: as many as it has."""
    blocks = np.array([len(session) for session in logs])
    padded = np.full((len(logs), blocks.max(), 2), np.nan)
    for session, row in zip(logs, padded, strict=True):
        row[: len(session)] = session
    which = rng.integers(len(logs), size=(RESAMPLES, len(logs), 1))
    drawn_blocks = rng.integers(blocks[which], size=(RESAMPLES, len(logs), blocks.max()))
    drawn = padded[which, drawn_blocks]
    if blocks.min() == blocks.max():
        return np.asarray(np.median(drawn.reshape(RESAMPLES, -1), axis=1))
    drawn[np.arange(blocks.max()) >= blocks[which]] = np.nan
    return np.asarray(np.nanmedian(drawn.reshape(RESAMPLES, -1), axis=1))


def _interval(middle: float, medians: Array) -> Ratio:
    low, high = np.percentile(medians, [2.5, 97.5])
    return Ratio(*(float(np.exp(value)) for value in (middle, low, high)))


def median_deviation(values: Sequence[float]) -> float:
    """Median absolute deviation from the median."""
    array: Array = np.asarray(values, dtype=np.float64)
    return float(np.median(np.abs(array - np.median(array))))


def percentile_90(values: Sequence[float]) -> float | None:
    """The 90th percentile, or None for fewer runs than it could be told from."""
    if len(values) < PERCENTILE_90_RUNS:
        return None
    return float(np.percentile(np.asarray(values, dtype=np.float64), 90, method="higher"))
