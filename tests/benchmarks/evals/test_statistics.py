"""Intervals, paired differences and exact tests against scipy's and statsmodels' values, and by property."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllava_edge.benchmarks.evals.statistics import (
    exact_mcnemar,
    interval,
    paired,
    questions_for,
    standard_error,
)

# Computed once in an environment of their own; `origin` names versions and functions.
LIBRARY: dict[str, Any] = json.loads(Path(__file__).with_name("library_statistics.json").read_text("utf-8"))


def test_mcnemars_exact_p_is_the_libraries() -> None:
    for first, other, p in LIBRARY["mcnemar"]:
        assert exact_mcnemar(first, other) == pytest.approx(p, rel=1e-9), (first, other)
    assert exact_mcnemar(0, 5) == 1 / 16  # by hand: 2 / 2**5


def test_where_all_are_right_the_interval_is_the_librarys_wilson() -> None:
    for num, low, high in LIBRARY["wilson_all"]:
        clusters = [str(index) for index in range(num)]
        assert interval(np.ones(num), clusters) == pytest.approx((low, high), abs=1e-6)
        assert interval(np.zeros(num), clusters) == pytest.approx((1 - high, 1 - low), abs=1e-6)


def test_clustered_errors_and_numbers_of_questions_are_the_librarys() -> None:
    for case in LIBRARY["clustered"]:
        values = np.array(case["values"])
        clusters = [str(cluster) for cluster in case["clusters"]]
        assert values.mean() == pytest.approx(case["mean"])
        assert standard_error(values, clusters) == pytest.approx(case["se"], rel=1e-9)
        if case["questions_for_one_point"]:
            wanted = questions_for(0.01, values, clusters)
            assert wanted == pytest.approx(case["questions_for_one_point"], rel=1e-3, abs=1)


answers = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None)
@given(answers)
def test_a_comparison_turned_round_is_the_same_one(rows: list[tuple[bool, bool, int]]) -> None:
    first, other = (np.array([float(row[side]) for row in rows]) for side in (0, 1))
    clusters = [str(row[2]) for row in rows]
    there, back = paired(first, other, clusters), paired(other, first, clusters)
    assert there["difference"] == pytest.approx(-back["difference"], abs=1e-12)
    low, high = there["difference_ci95"]
    assert [-high, -low] == pytest.approx(back["difference_ci95"], abs=1e-9)
    assert -1 <= low <= there["difference"] + 1e-12
    assert there["difference"] - 1e-12 <= high <= 1
    assert (there["mcnemar"]["first"], there["mcnemar"]["other"]) == (
        back["mcnemar"]["other"],
        back["mcnemar"]["first"],
    )
    assert 0 < there["mcnemar"]["p"] == back["mcnemar"]["p"] <= 1
    assert there["questions_for_one_point"] == back["questions_for_one_point"] > 0


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Forty pictures of five questions, whose answers go together: near 95 of 100 draws hold the mean."""
    rng = np.random.default_rng(0)
    clusters = [str(index // 5) for index in range(200)]
    held = 0
    for _ in range(200):
        share = np.repeat(rng.beta(2, 2, 40), 5)  # of mean 1/2
        low, high = interval((rng.random(200) < share).astype(np.float64), clusters)
        held += low <= 0.5 <= high
    assert 0.90 <= held / 200 <= 0.99


def test_questions_for_one_point_show_one_point() -> None:
    """With power 0.8: of a thousand sets of so many questions, about 800 find the difference."""
    rng = np.random.default_rng(1)
    sample = rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.95, 0.03], size=20_000)  # 5 % differ, by one point
    num = questions_for(0.01, sample, [str(index) for index in range(len(sample))])
    assert 3_500 < num < 4_500  # by hand: 0.05 * (2.80 / 0.01)**2 = 3 920
    sets = rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.95, 0.03], size=(1000, num))
    found = np.abs(sets.mean(axis=1)) / (sets.std(axis=1, ddof=1) / math.sqrt(num)) > 1.96
    assert 0.76 < found.mean() < 0.84


def test_what_never_differs_still_wants_questions() -> None:
    same = np.zeros(100)
    found = paired(same, same, [str(index) for index in range(100)])
    assert (found["difference_se"], found["mcnemar"]["p"]) == (0, 1)
    assert found["questions_for_one_point"] == pytest.approx(0.037 * (2.8016 / 0.01) ** 2, rel=0.01)
