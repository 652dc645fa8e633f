"""Ratios of two cells' times with an interval, and what may be claimed from them.

Source: spec/reliability_bench_parity.md section B7. On a simulated noisy machine, comparing block after block
called equal programs different in 89 % of trials; interleaved pairs with this interval in 7.5 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
PRACTICAL_MARGIN = 0.03  # a difference below 3 % is not worth a claim
Blocks = Sequence[tuple[float, float]]  # times in ms, two of each block


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

    @property
    def contains_one(self) -> bool:
        """Whether the interval includes 1, as a control of a cell against itself must."""
        return self.low <= 1 <= self.high


def speed_ratio(baseline: Blocks, cell: Blocks, *, seed: int = 0) -> Ratio:
    """exp(median(log(baseline / cell))) over neighbouring pairs, with a block bootstrap's percentiles.

    Args:
        baseline: times of the cell compared with, block by block.
        cell: times of the other one in the same blocks.
        seed: of the bootstrap.
    """
    assert len(baseline) == len(cell) > 0, "the cells were not measured in the same blocks"
    logs = np.log(np.array(baseline, dtype=np.float64)) - np.log(np.array(cell, dtype=np.float64))
    draws = np.random.default_rng(seed).integers(len(logs), size=(RESAMPLES, len(logs)))
    medians = np.median(logs[draws].reshape(RESAMPLES, -1), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Ratio(*(float(np.exp(value)) for value in (np.median(logs), low, high)))


def median(values: Sequence[float]) -> float:
    """The middle value: what a typical run took."""
    return float(np.median(np.asarray(values, dtype=np.float64)))


def median_deviation(values: Sequence[float]) -> float:
    """Median absolute deviation from the median."""
    array: npt.NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    return float(np.median(np.abs(array - np.median(array))))


def percentile_90(values: Sequence[float]) -> float | None:
    """The 90th percentile, or None for fewer than 64 runs, of which it could not be told.

    Source: MLPerf's early-stopping rule at 99 % confidence; spec section B3.
    """
    if len(values) < 64:
        return None
    return float(np.percentile(np.asarray(values, dtype=np.float64), 90, method="higher"))
