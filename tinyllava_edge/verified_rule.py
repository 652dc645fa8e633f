"""What "verified" means, once for `export` (a variant's status) and `verify` (the same stages of its ladder).

A vision variant is verified where its figures pass every gate of `gates.gates_of` at the stages tower and
connector, a language variant where every tensor of its file passes `StoredTensor`. What a runtime makes of
the files (the stages behind them) is `verify`'s alone.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bounds import first_fault
from tinyllava_edge.gates import gates_of, least_snr_db
from tinyllava_edge.precisions import EXACT_TYPES

Floats = npt.NDArray[np.float32]
# What a tensor's values become in a ggml type, by the gguf package's own arithmetic.
RoundTo = Callable[[Floats, str], Floats]


def features_fault(stage: str, variant: str, figures: Mapping[str, float]) -> str:
    """The first gate of a vision stage that figures do not pass, in words; "" where they pass all of them.

    Args:
        stage: "tower" or "connector".
        variant: of the vision graph.
        figures: metric -> value; those that are not judged here are left out.

    Raises:
        BundleError: the variant has no gates.
    """
    return first_fault([gate for gate in gates_of(stage, variant) if gate.metric in figures], figures)


def held_against(source: Floats, kind: str, round_to: RoundTo) -> tuple[Floats, float]:
    """What values of a tensor of a ggml type are held against, and the least signal to noise in dB.

    A rounding that must be exact is made first; other quantizations are judged against the values themselves.

    Raises:
        BundleError: a type without a gate.
    """
    return round_to(source, kind) if kind in EXACT_TYPES else source, _least(kind)


def _least(kind: str) -> float:
    return np.inf if kind in EXACT_TYPES else least_snr_db(kind)


class StoredTensor:
    """Whether a file's tensor holds what it must; rows may come one slice after another, in any layout.

    Args:
        kind: its ggml type, as "Q8_0".
        round_to: for types that must be exact.

    Raises:
        BundleError: a type without a gate.
    """

    def __init__(self, kind: str, round_to: RoundTo) -> None:
        self._kind, self._round_to = kind, round_to
        self._least = _least(kind)
        self._signal = self._noise = 0.0

    def add(self, source: Floats, stored: Floats) -> None:
        """Rows of the checkpoint and those that lie in the file, dequantized, in the same layout."""
        wanted, _ = held_against(source, self._kind, self._round_to)
        with np.errstate(invalid="ignore", over="ignore"):
            self._signal += float(np.sum(wanted.astype(np.float64) ** 2))
            self._noise += float(np.sum((wanted.astype(np.float64) - stored) ** 2))

    @property
    def snr_db(self) -> float:
        """Against what it must hold; infinity where both are equal, NaN where the file has NaN."""
        if self._noise == 0:
            return np.inf
        with np.errstate(divide="ignore"):
            return 10 * float(np.log10(self._signal / self._noise))

    @property
    def fault(self) -> str:
        """What is wrong, or ""."""
        if self.snr_db >= self._least:
            return ""
        if np.isinf(self._least):
            return f"values differ from those rounded to {self._kind} ({self.snr_db:.1f} dB)"
        return f"{self.snr_db:.1f} dB signal to noise, at least {self._least:g} is asked"
