"""Does a vision backend compute on this device what the bundle's reference tensors say?

Figures and gates are those of ladder stage 6, as far as they can be measured from outside.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bounds import first_fault
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.gates import precision_of
from tinyllava_edge.metrics import feature_figures, max_abs_difference
from tinyllava_edge.reference_tensors import read_reference_tensors

Floats = npt.NDArray[np.float32]
Encode = Callable[[Floats], Floats]


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
    psnr_db: float
    min_token_cosine: float
    mean_token_cosine: float
    within: float
    max_abs: float

    def fault(self, variant: str) -> str:
        """Which gate of a variant is not passed, or "".

        Raises:
            BundleError: the variant has no gates.
        """
        gates = precision_of(variant).gates
        if self.not_finite:
            return f"{self.not_finite} embeddings are NaN or infinite"
        return first_fault(gates, asdict(self))

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
    reference = read_reference_tensors(bundle)
    count, pixels, expected = len(reference.pictures), reference.pixels, reference.embeddings
    starts = [0, *range(1, count, largest_batch), count]
    actual = np.concatenate([encode(pixels[a:b]) for a, b in pairwise(starts) if a < b])
    return DeviceParity(
        pictures=count,
        not_finite=int(np.sum(~np.isfinite(actual))),
        max_abs=max_abs_difference(expected, actual),
        **feature_figures(expected, actual),
    )
