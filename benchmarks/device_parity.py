"""Does a vision backend compute on this device what the bundle's reference tensors say?

Figures and gates are those of ladder stage 6 (`gates.py`), as far as they can be measured from outside.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import Bundle

from .gates import gates_of
from .metrics import max_abs_difference, min_token_cosine, nmse, snr_db
from .stored_reference import StoredReference

Floats = npt.NDArray[np.float32]
Encode = Callable[[Floats], Floats]
# Metrics of stage 6 that need the graph or the checkpoint, and say nothing of this device.
_OF_THE_GRAPH = ("connector_nmse", "rounded_snr_db")


@dataclass(frozen=True, kw_only=True)
class DeviceParity:
    """How far a backend's embeddings are from torch's in float32: the worst picture of each figure.

    Attributes:
        pictures: how many there were.
        not_finite: values that are NaN or infinite; then the other figures are NaN.
    """

    pictures: int
    not_finite: int
    nmse: float
    snr_db: float
    min_token_cosine: float
    mean_token_cosine: float
    max_abs: float

    def fault(self, variant: str) -> str:
        """Which gate of a variant is not passed, or "".

        Raises:
            BundleError: the variant has no gates.
        """
        gates = [gate for gate in gates_of("connector", variant) if gate.metric not in _OF_THE_GRAPH]
        if self.not_finite:
            return f"{self.not_finite} embeddings are NaN or infinite"
        for gate in gates:
            value = getattr(self, gate.metric)
            if not gate.passes(value):
                bound = "at most" if gate.kind == "max" else "at least"
                return f"{gate.metric} is {value:.4g}, the gate is {bound} {gate.limit:g}"
        return ""

    def __str__(self) -> str:
        return (
            f"worst token cosine {self.min_token_cosine:.6f}, SNR {self.snr_db:.1f} dB, largest difference "
            f"{self.max_abs:.3g}, {self.pictures} pictures"
        )

    def to_json(self) -> dict[str, float | int | None]:
        """The figures, for an engine's record; None for what is not finite."""
        return {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}


def measure_parity(bundle: Bundle, encode: Encode, largest_batch: int = 1) -> DeviceParity:
    """Run the bundle's reference pictures: the first alone, the others in batches.

    Args:
        bundle: with a reference/ folder.
        encode: pixels [batch, 3, h, w] -> embeddings [batch, tokens, hidden].
        largest_batch: pictures in a batch.

    Raises:
        BundleError: the bundle has no reference tensors.
        BackendError: the backend fails.
    """
    reference = StoredReference(bundle)
    count = len(reference.pictures)
    pixels = np.stack([reference.pixels(index) for index in range(count)])
    expected = np.stack([reference.embeddings(index) for index in range(count)])
    starts = [0, *range(1, count, largest_batch), count]
    actual = np.concatenate([encode(pixels[a:b]) for a, b in pairwise(starts) if a < b])
    pairs = list(zip(expected, actual, strict=True))
    return DeviceParity(
        pictures=count,
        not_finite=int(np.sum(~np.isfinite(actual))),
        nmse=_worst(max, [nmse(*pair) for pair in pairs]),
        snr_db=_worst(min, [snr_db(*pair) for pair in pairs]),
        min_token_cosine=_worst(min, [min_token_cosine(*pair) for pair in pairs]),
        mean_token_cosine=_worst(min, [_mean_token_cosine(*pair) for pair in pairs]),
        max_abs=_worst(max, [max_abs_difference(*pair) for pair in pairs]),
    )


def _mean_token_cosine(expected: Floats, actual: Floats) -> float:
    """Cosine between the rows [tokens, hidden] of both, their mean."""
    return float(np.mean([min_token_cosine(*rows) for rows in zip(expected, actual, strict=True)]))


def _worst(choose: Callable[[list[float]], float], values: list[float]) -> float:
    """The worst of them; NaN is worse than any."""
    return float("nan") if any(np.isnan(values)) else choose(values)
