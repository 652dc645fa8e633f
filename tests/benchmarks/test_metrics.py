"""Every metric against numbers worked out by hand. CPU only, numpy only."""

import math

import numpy as np
import pytest

from tinyllava_edge.benchmarks import metrics


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_nmse_is_the_mean_squared_error_over_the_variance() -> None:
    # errors 1, 0, 0, 0: mean square 1/4; variance of 1..4 about 2.5: (2.25 + .25 + .25 + 2.25) / 4 = 1.25
    assert metrics.nmse(array(1, 2, 3, 4), array(2, 2, 3, 4)) == pytest.approx(0.25 / 1.25)


def test_nmse_of_a_constant_is_zero_or_infinite() -> None:
    assert metrics.nmse(array(1, 1), array(1, 1)) == 0
    assert metrics.nmse(array(1, 1), array(1, 2)) == math.inf


def test_snr_is_ten_times_the_logarithm_of_the_energy_ratio() -> None:
    # energy 9 + 16 = 25, error energy 0.25: 10 log10(100)
    assert metrics.snr_db(array(3, 4), array(3, 4.5)) == pytest.approx(20.0)
    assert metrics.snr_db(array(3, 4), array(3, 4)) == math.inf


def test_the_worst_row_decides_the_cosine() -> None:
    expected = np.array([[1.0, 0.0], [1.0, 1.0]])
    actual = np.array([[2.0, 0.0], [1.0, 0.0]])
    assert metrics.min_token_cosine(expected, actual) == pytest.approx(1 / math.sqrt(2))


def test_differences_are_absolute() -> None:
    assert metrics.max_abs_difference(array(1, 2), array(0, 5)) == 3
    assert metrics.mean_abs_difference(array(1, 2), array(0, 5)) == 2


def test_kl_divergence_is_the_textbook_sum() -> None:
    # p = (1/2, 1/2), q = (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3)
    expected, actual = np.array([[0.0, 0.0]]), np.array([[math.log(3), 0.0]])
    assert metrics.kl_divergence(expected, actual) == pytest.approx([0.5 * math.log(4 / 3)])


def test_kl_divergence_does_not_see_a_shift_and_survives_large_logits() -> None:
    logits = np.array([[1000.0, 0.0, -1000.0]])
    assert metrics.kl_divergence(logits, logits + 17) == pytest.approx([0.0])


def test_top1_agreement_is_a_fraction_of_positions() -> None:
    expected = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    actual = np.array([[0.0, 2.0], [0.0, 1.0], [0.0, 1.0], [0.5, 1.0]])
    assert metrics.top1_agreement(expected, actual) == 0.75


def test_the_margin_is_best_minus_second_best() -> None:
    assert metrics.top1_margin(np.array([[3.0, 1.0, 2.5], [0.0, 5.0, 1.0]])) == pytest.approx([0.5, 4.0])


@pytest.mark.parametrize("name", ["nmse", "snr_db", "max_abs_difference", "top1_agreement"])
def test_a_value_that_is_not_finite_makes_a_metric_nan(name: str) -> None:
    expected = np.array([[1.0, 2.0]])
    assert math.isnan(getattr(metrics, name)(expected, np.array([[1.0, math.nan]])))


def test_tensors_of_different_shape_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="shapes differ"):
        metrics.nmse(array(1), array(1, 2))
