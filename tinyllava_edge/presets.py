"""Which variants are opened where nobody names them: one rule, by measured accuracy, speed and bytes.

Accuracy is what `verify --checkpoint` measured of this very bundle (parity/RUNTIME.json); speed is what
`tune` measured on this machine, else what is known to be faster. docs/presets.md.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tinyllava_edge.bounds import Gate, at_least, at_most
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.device import read_cpu
from tinyllava_edge.errors import BundleError, UsageError
from tinyllava_edge.manifest import Variant
from tinyllava_edge.parity_files import read_parity
from tinyllava_edge.precisions import PRECISIONS, Processor
from tinyllava_edge.tuned import Tuned

PRESETS = {
    "exact": "the most precise variants",
    "balanced": "the fastest within the bound on accuracy, else the most precise",
    "fast": "the fastest that verify passed",
    "small": "the fewest bytes that verify passed",
}
DEFAULT_PRESET = "balanced"
# Against the checkpoint in float32, in nats, the same for all types: about what llama.cpp's Q5_K_M costs
# Llama-3-8B (docs/sources/measuring.md#cost-of-a-quantization). nano: q8_0 7e-5, int8 vision 7e-4, q4_k_m
# .008, q4_0 .015.
BOUND: tuple[Gate, ...] = (at_most("mean_kld", 0.01), at_least("top1_agreement", 0.95))
# Vision variants on a CPU, fastest first where nothing was measured: ONNX Runtime computes fp16 in float32.
_CPU_ORDER = ("int8", "fp32", "fp16")
_CPU_ORDER_WITHOUT_VNNI = ("fp32", "int8", "fp16")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One vision variant with one language variant.

    Attributes:
        runtime: that reads them.
        size_bytes: of their files.
        mean_kld: nats against the checkpoint, the two variants' added up; None where verify compared none.
        top1_agreement: share of positions whose likeliest token is the checkpoint's, likewise.
        passed: whether verify compared both, and found no stage that failed.
        request_ms: of a picture, a question and 32 tokens, where `tune` measured both here.
    """

    runtime: str
    vision: Variant
    language: Variant
    size_bytes: int
    mean_kld: float | None
    top1_agreement: float | None
    passed: bool
    request_ms: float | None

    @property
    def is_within_bound(self) -> bool:
        """Whether it passes `BOUND`."""
        figures = {"mean_kld": self.mean_kld, "top1_agreement": self.top1_agreement}
        return self.passed and all(
            value is not None and gate.passes(value) for gate in BOUND for value in [figures[gate.metric]]
        )

    @property
    def label(self) -> str:
        """For people: "int8 + q4_k_m, KL 0.0087 nats, top-1 99.6 %"."""
        said = f"{self.vision.name} + {self.language.name}"
        if self.mean_kld is None or self.top1_agreement is None:
            return said
        return f"{said}, KL {self.mean_kld:.2g} nats, top-1 {100 * self.top1_agreement:.1f} %"


def pairs(
    bundle: Bundle,
    runtime: str,
    backends: tuple[str, str],
    targets: tuple[str, str],
    tuned: Tuned | None = None,
) -> list[Pair]:
    """Every verified pair of variants that a runtime reads, most precise first.

    Args:
        bundle: opened.
        runtime: whose results of `verify` count.
        backends: its vision and its language backend.
        targets: what these read: "onnx" and "gguf".
        tuned: what `tune` measured here.
    """
    processor: Processor = "cuda" if "cuda" in backends[0] else "cpu"
    vision, language = (
        [v for v in bundle.manifest.variants if _is_read(v, part, target, processor)]
        for part, target in zip(("vision", "language"), targets, strict=True)
    )
    figures = _Figures.read(bundle, runtime)
    return [
        Pair(
            runtime=runtime,
            vision=one,
            language=other,
            size_bytes=bundle.variant_bytes(one) + bundle.variant_bytes(other),
            mean_kld=figures.of("mean_kld", one.name, other.name),
            top1_agreement=figures.of("top1_agreement", one.name, other.name),
            passed=figures.passed(one.name, other.name),
            request_ms=None if tuned is None else tuned.request_ms(backends, one.name, other.name),
        )
        for one in vision
        for other in language
    ]


def choose_pair(preset: str, among: Iterable[Pair]) -> Pair | None:
    """The pair that a preset means; None where it is the most precise, which the backends know themselves.

    Raises:
        UsageError: there is no such preset.
    """
    if preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}. Known: {', '.join(PRESETS)}.")
    known = [pair for pair in among if (pair.is_within_bound if preset == "balanced" else pair.passed)]
    if preset == "exact" or not known:
        return None
    if preset == "small":
        return min(known, key=lambda pair: pair.size_bytes)
    if all(pair.request_ms is not None for pair in known):
        return min(known, key=lambda pair: pair.request_ms or 0)
    return min(known, key=_guessed_speed)


def no_pair(preset: str, among: Iterable[Pair]) -> str:
    """Why `choose_pair` gave none, in words; "" where the most precise was asked for."""
    if preset == "exact":
        return ""
    figures = [pair for pair in among if pair.mean_kld is not None]
    why = "none is within the bound" if figures else "verify --checkpoint has compared none"
    return f"preset {preset}: the most precise variants, as {why}"


def _guessed_speed(pair: Pair) -> tuple[int, int]:
    if "cuda" in pair.runtime:
        return 0, pair.size_bytes
    order = _CPU_ORDER_WITHOUT_VNNI if read_cpu().saturates_int8 else _CPU_ORDER
    name = pair.vision.precision
    return order.index(name) if name in order else len(order), pair.size_bytes


def _is_read(variant: Variant, part: str, target: str, processor: Processor) -> bool:
    """Whether a variant of a part is verified, of a target, and has kernels on a processor."""
    known = PRECISIONS.get(variant.precision) if part == "vision" else None
    runs = known is None or processor in known.runs_on
    return runs and (variant.part, variant.status, variant.target) == (part, "verified", target)


class _Figures:
    """What `verify` found of a bundle: language variants with its first vision variant, and the reverse."""

    def __init__(self, found: Mapping[str, Any] | None) -> None:
        stages = (found or {}).get("stages", [])
        names = (found or {}).get("variants") or {"vision": [], "language": []}
        self._vision, self._language = (list(names.get(part, [])) for part in ("vision", "language"))
        self._failed = {one["variant"] for one in stages if one.get("status") == "failed"}
        self._costs = {
            one["variant"]: {check["metric"]: check["value"] for check in one["checks"]}
            for one in stages
            if one["stage"] == "teacher_forced"
        }

    @classmethod
    def read(cls, bundle: Bundle, runtime: str) -> "_Figures":
        with suppress(BundleError):  # a damaged record is none; `verify` and `bench` name it
            return cls(read_parity(bundle, runtime))
        return cls(None)

    def of(self, metric: str, vision: str, language: str) -> float | None:
        """A figure of a pair: what both lose, added up."""
        if vision not in self._vision or language not in self._language:
            return None
        best = 1.0 if metric == "top1_agreement" else 0.0
        names = [language] if vision == self._vision[0] else [language, self._beside_first(vision)]
        if vision != self._vision[0] and language == self._language[0]:
            names = names[1:]
        found = [self._costs.get(name, {}).get(metric) for name in names]
        measured = [float(value) for value in found if isinstance(value, int | float)]
        return best + sum(value - best for value in measured) if len(measured) == len(names) else None

    def passed(self, vision: str, language: str) -> bool:
        names = {"", "manifest", vision, language, self._beside_first(vision)}
        compared = vision in self._vision and language in self._language
        return compared and not names & self._failed

    def _beside_first(self, vision: str) -> str:
        return f"{self._language[0]}, vision {vision}" if self._language else ""
