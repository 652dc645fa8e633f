"""How far two tensors, or two distributions over a vocabulary, are apart.

Sums are in float64. A value that is not finite in either tensor makes a metric NaN; no gate passes NaN.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


def nmse(expected: Array, actual: Array) -> float:
    """Mean squared error over the variance of what is expected.

    Source: docs/sources/measuring.md#metrics-of-equality. A constant `expected` has no variance: then 0 where
    both are equal, infinity where not.
    """
    expected, actual = _pair(expected, actual)
    error = float(np.mean((expected - actual) ** 2))
    variance = float(np.var(expected))
    if variance == 0:
        return 0.0 if error == 0 else np.inf + 0 * error
    return error / variance


def snr_db(expected: Array, actual: Array) -> float:
    """Energy of what is expected over the energy of the error, in decibels; infinity where both are equal.

    Source: Polygraphy, CompareFunc.quality_metrics (signal-to-noise ratio; energy, not variance).
    """
    expected, actual = _pair(expected, actual)
    signal, noise = float(np.sum(expected**2)), float(np.sum((expected - actual) ** 2))
    if noise == 0:
        return np.inf
    return 10 * float(np.log10(signal / noise)) if signal > 0 else -np.inf


def psnr_db(expected: Array, actual: Array) -> float:
    """Square of the largest magnitude of what is expected over the mean squared error, in decibels.

    Never below `snr_db`, since no mean is above its largest value; infinity where both are equal.
    """
    expected, actual = _pair(expected, actual)
    peak, error = float(np.max(expected**2)), float(np.mean((expected - actual) ** 2))
    return np.inf if error == 0 else 10 * float(np.log10(peak / error))


def within(expected: Array, actual: Array) -> float:
    """Fraction of the values whose error is at most 1e-4 of the root mean square + 1e-3 of the value."""
    expected, actual = _pair(expected, actual)
    limit = 1e-4 * np.sqrt(np.mean(expected**2)) + 1e-3 * np.abs(expected)
    return float(np.mean(np.abs(expected - actual) <= limit))


def min_token_cosine(expected: Array, actual: Array) -> float:
    """Cosine between the rows [..., hidden] of both, the worst row; one bad token cannot hide in a mean.

    Two rows of zeros are equal: 1. A row of zeros has no direction: with any other, NaN.
    """
    return float(np.min(_token_cosines(expected, actual)))


def mean_token_cosine(expected: Array, actual: Array) -> float:
    """Cosine between the rows [..., hidden] of both, their mean."""
    return float(np.mean(_token_cosines(expected, actual)))


_OF_FEATURES = (
    (nmse, np.max),
    (snr_db, np.min),
    (psnr_db, np.min),
    (min_token_cosine, np.min),
    (mean_token_cosine, np.min),
    (within, np.min),
)


def feature_figures(expected: Iterable[Array], actual: Iterable[Array]) -> dict[str, float]:
    """Metrics of pictures' features, each [tokens, hidden]: the worst picture's; NaN is worse than any.

    Returns:
        nmse, snr_db, psnr_db, min_token_cosine, mean_token_cosine, within; NaN where shapes differ.
    """
    pairs = list(zip(expected, actual, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return {metric.__name__: np.nan for metric, _ in _OF_FEATURES}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            metric.__name__: float(worst([metric(*pair) for pair in pairs])) for metric, worst in _OF_FEATURES
        }


def max_abs_difference(expected: Array, actual: Array) -> float:
    """Largest absolute difference."""
    expected, actual = _pair(expected, actual)
    return float(np.max(np.abs(expected - actual), initial=0.0))


def kl_divergence(expected_logits: Array, actual_logits: Array) -> npt.NDArray[np.float64]:
    """Kullback-Leibler divergence of each position, in nats: sum p (log p - log q), p what is expected.

    Source: llama.cpp, tools/perplexity (--kl-divergence), whose base is the unquantized model likewise.

    Args:
        expected_logits: [positions, vocab].
        actual_logits: [positions, vocab].

    Returns:
        [positions]
    """
    expected, actual = _pair(expected_logits, actual_logits)
    log_p, log_q = log_softmax(expected), log_softmax(actual)
    # Rounding can leave a sum of terms of both signs a hair below zero.
    divergence: npt.NDArray[np.float64] = np.maximum(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1), 0.0)
    return divergence


def top1_agreement(expected_logits: Array, actual_logits: Array) -> float:
    """Fraction of positions [positions, vocab] whose largest logit is the same token.

    Source: llama.cpp, tools/perplexity ("same top p").
    """
    expected, actual = _pair(expected_logits, actual_logits)
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        return float("nan")
    return float(np.mean(expected.argmax(axis=-1) == actual.argmax(axis=-1)))


def top1_margin(logits: Array) -> npt.NDArray[np.float64]:
    """Gap between the best and the second best logit of each position [positions, vocab] -> [positions]."""
    best_two = np.partition(logits.astype(np.float64), -2, axis=-1)[..., -2:]
    margin: npt.NDArray[np.float64] = best_two[..., 1] - best_two[..., 0]
    return margin


def log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    """Logarithm of the probabilities, over the last axis."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _pair(expected: Array, actual: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    assert expected.shape == actual.shape, f"shapes differ: {expected.shape} and {actual.shape}"
    return expected.astype(np.float64), actual.astype(np.float64)


def _token_cosines(expected: Array, actual: Array) -> npt.NDArray[np.float64]:
    expected, actual = _pair(expected, actual)
    norms = np.linalg.norm(expected, axis=-1) * np.linalg.norm(actual, axis=-1)
    products = np.sum(expected * actual, axis=-1)
    both_zero = ~(expected.any(axis=-1) | actual.any(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines: npt.NDArray[np.float64] = np.where(both_zero, 1.0, products / norms)
    return cosines
