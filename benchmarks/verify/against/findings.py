"""What a foreign file gave at a stage, judged against the checkpoint."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.benchmarks.verify.ladder import spelled
from tinyllava_edge.metrics import kl_divergence, min_token_cosine, nmse, snr_db, top1_agreement

Floats = npt.NDArray[np.float32]
STAGES = ("files", "weights", "pixels", "tower", "connector", "rows", "ids", "logits")
LEAST_SNR_DB = 30.0  # of features: float16 arithmetic and ggml's table of GELU are above 50
LEAST_TENSOR_DB = 40.0  # bfloat16 of float32
LEAST_SNR_QUANTIZED_DB = 10.0
MOST_NMSE, MOST_NMSE_EXACT = 0.1, 1e-3  # of logits: quantized types or another engine, and float types
MEAN_LEVELS = 0.5  # of a byte's 255: another order of passes is below 0.2, another filter above 1


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One comparison.

    Attributes:
        stage: of `STAGES`.
        what: of the file, as a tensor's name or a picture's.
        figures: metric -> value.
        gate: what it must be, in words.
        passed: whether it is; None where nothing is judged.
        cause: where not.
    """

    stage: str
    what: str
    figures: dict[str, float] = field(default_factory=dict)
    gate: str = ""
    passed: bool | None = True
    cause: str = ""


@dataclass(frozen=True, kw_only=True)
class AgainstReport:
    """Every finding about the given files, in the order of the stages."""

    kind: str
    files: tuple[str, ...]
    checkpoint: str
    findings: tuple[Finding, ...]

    @property
    def first(self) -> Finding | None:
        """The first that differs."""
        order = sorted(self.findings, key=lambda one: STAGES.index(one.stage))
        return next((one for one in order if one.passed is False), None)

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return self.first is None

    @property
    def verdict(self) -> str:
        """One line for people, which begins with "equal" or "different"."""
        stages = ", ".join(stage for stage in STAGES if any(one.stage == stage for one in self.findings))
        if self.first is None:
            return f"equal: {self.kind}: nothing differs at {stages}"
        cause = f"; likely cause: {self.first.cause}" if self.first.cause else ""
        return (
            f"different: {self.kind}: first stage that differs: {self.first.stage} ({self.first.what}){cause}"
        )

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        return {
            "verdict": self.verdict,
            "equal": self.passed,
            "first": None if self.first is None else self.first.stage,
            "kind": self.kind,
            "files": list(self.files),
            "checkpoint": self.checkpoint,
            "findings": [asdict(one) | {"figures": _spelled(one.figures)} for one in self.findings],
        }


def _spelled(figures: dict[str, float]) -> dict[str, float | str]:
    return {name: spelled(value) for name, value in figures.items()}


def fact(what: str, expected: Any, found: Any, cause: str = "", stage: str = "files") -> Finding:
    """A value that a file says of itself."""
    is_same = (
        bool(np.allclose(expected, found, rtol=1e-4)) if _is_number(expected, found) else expected == found
    )
    text = f"{found!r}, the checkpoint has {expected!r}"
    return Finding(
        stage=stage,
        what=what,
        gate="" if is_same else text,
        passed=is_same,
        cause="" if is_same else cause or f"{what} is {text}",
    )


def _is_number(*values: object) -> bool:
    arrays = [np.asarray(value) for value in values]
    return all(one.dtype.kind in "fiu" for one in arrays) and len({one.shape for one in arrays}) == 1


def features(
    stage: str,
    what: str,
    expected: Floats,
    found: Floats,
    cause: Callable[[], str] = lambda: "",
    least: float = LEAST_SNR_DB,
) -> Finding:
    """Rows [n, hidden] or a tensor, by signal to noise."""
    gate = f"SNR >= {least:g} dB"
    if expected.shape != found.shape:
        said = f"shape {list(found.shape)}, expected {list(expected.shape)}"
        return Finding(stage=stage, what=what, gate=said, passed=False, cause=cause() or said)
    if not np.isfinite(found).all():
        said = "values that are not finite: overflow, or a damaged file"
        return Finding(stage=stage, what=what, gate=gate, passed=False, cause=said)
    figures = {"snr_db": snr_db(expected, found), "nmse": nmse(expected, found)}
    if expected.ndim == 2 and stage != "weights":
        figures["min_token_cosine"] = min_token_cosine(expected, found)
    passed = figures["snr_db"] >= least
    return Finding(
        stage=stage, what=what, figures=figures, gate=gate, passed=passed, cause="" if passed else cause()
    )


def logits(
    what: str, expected: Floats, found: Floats, *, most: float = MOST_NMSE, cause: str = ""
) -> Finding:
    """Logits [positions, vocab], by the mean squared error; `cause` is said where they differ."""
    gate = f"NMSE <= {most:g}"
    if expected.shape != found.shape:
        said = f"logits {list(found.shape)}, expected {list(expected.shape)}"
        return Finding(stage="logits", what=what, gate=said, passed=False, cause=said)
    figures = {
        "nmse": nmse(expected, found),
        "mean_kl": float(kl_divergence(expected, found).mean()),
        "top1_agreement": top1_agreement(expected, found),
    }
    passed = figures["nmse"] <= most
    return Finding(
        stage="logits", what=what, figures=figures, gate=gate, passed=passed, cause="" if passed else cause
    )


def tensor_snr_db(expected: Floats, found: Floats) -> float:
    """`snr_db`, and -infinity where a value is not finite: NaN is below nothing."""
    return snr_db(expected, found) if np.isfinite(found).all() else -np.inf


def lowest_snr(worst: tuple[float, str], least: float) -> Finding:
    """The tensor that is furthest off, by its name and `tensor_snr_db`."""
    passed = worst[0] >= least
    return Finding(
        stage="weights",
        what=worst[1],
        figures={"lowest_snr_db": worst[0]},
        gate=f"SNR >= {least:g} dB",
        passed=passed,
        cause="" if passed else f"{worst[1]} is not the checkpoint's",
    )


def pixels(what: str, expected: Floats, found: Floats, level: float, cause: Callable[[], str]) -> Finding:
    """Pixels [3, h, w], by their mean difference in levels of a byte.

    Args:
        what: the picture.
        expected: of the checkpoint's processor.
        found: of the file's.
        level: what one level of a byte is worth.
        cause: asked where they differ.
    """
    gate = f"mean difference <= {MEAN_LEVELS:g} levels of 255"
    if expected.shape != found.shape:
        said = f"pixels {list(found.shape)}, expected {list(expected.shape)}"
        return Finding(stage="pixels", what=what, gate=said, passed=False, cause=said)
    difference = np.abs(expected.astype(np.float64) - found) / level
    figures = {"mean_levels": float(difference.mean()), "max_levels": float(difference.max())}
    passed = figures["mean_levels"] <= MEAN_LEVELS
    return Finding(
        stage="pixels", what=what, figures=figures, gate=gate, passed=passed, cause="" if passed else cause()
    )
