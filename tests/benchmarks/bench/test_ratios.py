"""Ratios and their intervals on times whose truth is known. CPU only, numpy only."""

import numpy as np
import pytest

from tinyllava_edge.benchmarks.bench.ratios import (
    Ratio,
    Sessions,
    median_deviation,
    paired_ratio,
    percentile_90,
    unpaired_ratio,
)


def of_pairs(baseline: Sessions, cell: Sessions) -> Ratio:
    ratio = paired_ratio(baseline, cell)
    assert ratio is not None
    return ratio


def test_a_cell_that_takes_half_the_time_is_twice_as_fast() -> None:
    ratio = of_pairs([[(10.0, 12.0), (11.0, 10.0)]], [[(5.0, 6.0), (5.5, 5.0)]])
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    assert ratio.verdict == "faster"


def noisy_session(
    rng: np.random.Generator, num_blocks: int, luck: tuple[float, float] = (1.0, 1.0)
) -> list[list[tuple[float, float]]]:
    """Two cells in A B B A order on a machine that slows down by 6 % and has bursts.

    Args:
        rng: for noise and bursts.
        num_blocks: in the session.
        luck: what every run of each cell's process is multiplied by.
    """
    times = 10 * np.linspace(1, 1.06, 4 * num_blocks)
    times *= 1 + 0.02 * rng.standard_normal(len(times))
    times *= np.where(rng.random(len(times)) < 0.08, 1.35, 1.0)
    in_blocks = times.reshape(num_blocks, 4) * np.array([luck[0], luck[1], luck[1], luck[0]])
    return [[(b[0], b[3]) for b in in_blocks], [(b[1], b[2]) for b in in_blocks]]


def test_equal_cells_on_a_drifting_machine_are_seldom_called_different() -> None:
    rng = np.random.default_rng(0)
    pairs = [noisy_session(rng, 10) for _ in range(100)]
    ratios = [of_pairs([baseline], [cell]) for baseline, cell in pairs]
    assert sum(not ratio.low <= 1 <= ratio.high for ratio in ratios) <= 12  # nominally 5
    assert sum(ratio.verdict in ("faster", "slower") for ratio in ratios) <= 3


def test_what_differs_between_processes_does_not_shrink_with_more_blocks() -> None:
    """Three sessions in which each process is up to 2 % off for good: still the same program."""

    def misses(three: bool) -> int:
        rng = np.random.default_rng(1)
        missed = 0
        for _ in range(60):
            sessions = [noisy_session(rng, 8, tuple(1 + 0.02 * rng.standard_normal(2))) for _ in range(3)]
            if not three:  # the same runs, as if they came from one pair of processes
                sessions = [[[block for s in sessions for block in s[cell]] for cell in range(2)]]
            baseline, cell = ([session[index] for session in sessions] for index in range(2))
            ratio = of_pairs(baseline, cell)
            missed += not ratio.low <= 1 <= ratio.high
        return missed

    assert misses(three=True) < misses(three=False)


def test_two_measurements_with_nothing_in_common_are_compared_by_their_medians() -> None:
    first: Sessions = [[(10.0, 10.2), (9.8, 10.1)], [(10.0, 9.9), (10.3, 10.0)]]
    second: Sessions = [[(5.0, 5.1)], [(4.9, 5.0)], [(5.0, 5.0)]]
    ratio = unpaired_ratio(first, second)
    assert ratio.ratio == pytest.approx(2.0)
    assert 1.9 < ratio.low < 2.0 < ratio.high < 2.1


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


def test_a_session_that_ended_early_weighs_as_much_as_it_has_blocks() -> None:
    """A cell that failed has fewer blocks than the one it is compared with; they are the first ones."""
    baseline: Sessions = [[(10.0, 10.0)] * 4, [(10.0, 10.0), (30.0, 30.0)]]
    cell: Sessions = [[(5.0, 5.0)] * 4, [(5.0, 5.0)], []]
    ratio = of_pairs(baseline, cell)
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    assert paired_ratio(baseline, [[], []]) is None
    uneven = of_pairs([[(1.0, 1.0)] * 9, [(4.0, 4.0)]], [[(1.0, 1.0)] * 9, [(1.0, 1.0)]])
    # Of two drawings of sessions one in four is the short one twice: then the median is 4.
    assert (uneven.ratio, uneven.low, uneven.high) == pytest.approx((1.0, 1.0, 4.0))
