"""How far two tensors, or two distributions over a vocabulary, are apart.

Sums are in float64. A value that is not finite in either tensor makes a metric NaN; no gate passes NaN.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


def nmse(expected: Array, actual: Array) -> float:
    """Mean squared error over the variance of what is expected.

    Source: llama.cpp, examples/model-conversion/scripts/utils/check-nmse.py. A constant `expected` has no
    variance: then 0 where both are equal, infinity where not.
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


def min_token_cosine(expected: Array, actual: Array) -> float:
    """Cosine between the rows [..., hidden] of both, the worst row; one bad token cannot hide in a mean."""
    return float(np.min(_token_cosines(expected, actual)))


def mean_token_cosine(expected: Array, actual: Array) -> float:
    """Cosine between the rows [..., hidden] of both, their mean."""
    return float(np.mean(_token_cosines(expected, actual)))


def max_abs_difference(expected: Array, actual: Array) -> float:
    """Largest absolute difference."""
    expected, actual = _pair(expected, actual)
    return float(np.max(np.abs(expected - actual), initial=0.0))


def mean_abs_difference(expected: Array, actual: Array) -> float:
    """Mean absolute difference."""
    expected, actual = _pair(expected, actual)
    return float(np.mean(np.abs(expected - actual)))


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
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines: npt.NDArray[np.float64] = np.where(norms == 0, 1.0, products / norms)
    return cosines
