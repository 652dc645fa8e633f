"""Every metric against numbers worked out by hand. CPU only, numpy only."""

import math

import numpy as np
import pytest

from tinyllava_edge import bounds, metrics
from tinyllava_edge.precisions import PRECISIONS


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


def test_the_cosine_of_a_row_of_zeros_is_that_of_equals_or_none() -> None:
    zeros, ones = np.zeros((1, 2)), np.ones((1, 2))
    assert metrics.min_token_cosine(zeros, zeros) == 1
    assert math.isnan(metrics.min_token_cosine(zeros, ones))
    assert math.isnan(metrics.mean_token_cosine(ones, zeros))


def test_figures_of_features_are_those_worked_out_by_hand() -> None:
    expected = np.array([[[3, 4], [0, 5]]], dtype=np.float32)
    actual = np.array([[[3, 4], [0, 4]]], dtype=np.float32)
    figures = metrics.feature_figures(expected, actual)
    assert figures["nmse"] == pytest.approx(0.25 / np.var([3, 4, 0, 5]))
    assert figures["snr_db"] == pytest.approx(10 * np.log10(50 / 1))
    assert figures["psnr_db"] == pytest.approx(20 * np.log10(5 / 0.5))
    assert figures["min_token_cosine"] == pytest.approx(1.0)
    assert figures["mean_token_cosine"] == pytest.approx(1.0)
    assert figures["within"] == 0.75


@pytest.mark.parametrize("picture", [0, 1, 2])
def test_the_figures_are_the_worst_pictures_wherever_it_is(picture: int) -> None:
    expected = np.array([[[3.0, 4.0], [0.0, 5.0]]] * 3)
    actual = expected.copy()
    actual[picture, 1, 1] = 4
    assert metrics.feature_figures(expected, actual)["snr_db"] == pytest.approx(10 * np.log10(50))
    actual[picture, 1, 1] = math.nan
    figures = metrics.feature_figures(expected, actual)
    assert {name for name, value in figures.items() if math.isnan(value)} == figures.keys() - {"within"}
    assert all(map(math.isnan, metrics.feature_figures(expected, actual[:, :1]).values()))  # another shape


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("picture", [0, 1])
def test_what_is_not_finite_passes_no_gate(precision: str, bad: float, picture: int) -> None:
    expected = np.array([[[3, 4], [0, 5]]] * 2, dtype=np.float32)
    actual = expected.copy()
    gates = PRECISIONS[precision].gates
    assert bounds.first_fault(gates, metrics.feature_figures(expected, actual)) == ""
    actual[picture, 0, 0] = bad
    assert bounds.first_fault(gates, metrics.feature_figures(expected, actual)) != ""


def test_the_first_gate_that_fails_is_said_with_value_and_bound() -> None:
    gates = (bounds.at_most("nmse", 1), bounds.at_least("snr_db", 40), bounds.at_least("within", 1))
    figures = {"nmse": 0.5, "snr_db": 12.345678, "within": 0.0}
    assert bounds.first_fault(gates, figures) == "snr_db is 12.35, the gate is at least 40"


def test_differences_are_absolute() -> None:
    assert metrics.max_abs_difference(array(1, 2), array(0, 5)) == 3


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
