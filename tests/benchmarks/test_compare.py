"""Ratios and their intervals on times whose truth is known. CPU only, numpy only."""

import numpy as np
import pytest

from tinyllava_edge.benchmarks.compare import Ratio, median_deviation, percentile_90, speed_ratio

Blocks = list[tuple[float, float]]


def test_a_cell_that_takes_half_the_time_is_twice_as_fast() -> None:
    ratio = speed_ratio([(10.0, 12.0), (11.0, 10.0)], [(5.0, 6.0), (5.5, 5.0)])
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    assert ratio.verdict == "faster"


def noisy_blocks(rng: np.random.Generator, num_blocks: int) -> tuple[Blocks, Blocks]:
    """Two equal cells in A B B A order on a machine that slows down by 6 % and has bursts (spec B7)."""
    times = 10 * np.linspace(1, 1.06, 4 * num_blocks)
    times *= 1 + 0.02 * rng.standard_normal(len(times))
    times *= np.where(rng.random(len(times)) < 0.08, 1.35, 1.0)
    in_blocks = times.reshape(num_blocks, 4)
    return [(b[0], b[3]) for b in in_blocks], [(b[1], b[2]) for b in in_blocks]


def test_equal_cells_on_a_drifting_machine_are_seldom_called_different() -> None:
    rng = np.random.default_rng(0)
    ratios = [speed_ratio(*noisy_blocks(rng, 10)) for _ in range(100)]
    assert sum(not ratio.contains_one for ratio in ratios) <= 12  # nominally 5
    assert sum(ratio.verdict in ("faster", "slower") for ratio in ratios) <= 3


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio(1.2, 1.1, 1.3), "faster"),
        (Ratio(0.8, 0.7, 0.9), "slower"),
        (Ratio(1.2, 0.9, 1.5), "inconclusive"),
        (Ratio(1.02, 1.01, 1.025), "equivalent"),  # excludes 1, but 2 % is not worth a claim
        (Ratio(1.0, 0.98, 1.02), "equivalent"),
        (Ratio(1.02, 1.01, 1.05), "inconclusive"),
    ],
)
def test_a_claim_needs_an_interval_without_1_and_a_difference_that_matters(
    ratio: Ratio, verdict: str
) -> None:
    assert ratio.verdict == verdict


def test_a_90th_percentile_needs_64_runs() -> None:
    assert percentile_90(list(range(63))) is None
    assert percentile_90([float(value) for value in range(1, 101)]) == 91  # the next higher one


def test_the_median_deviation_is_of_the_middle() -> None:
    assert median_deviation([1.0, 2.0, 3.0, 100.0, 2.0]) == 1.0
