"""The parity ladder's values: what a stage measured, judged by its gates, and the report of all stages."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tinyllava_edge.bounds import Gate, at_most
from tinyllava_edge.bundle import Bundle, Variant
from tinyllava_edge.compute_classes import FLOAT32_CPU, ComputeClass
from tinyllava_edge.errors import TinyLlavaEdgeError
from tinyllava_edge.gates import STAGES, gates_of
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.registry import RUNTIMES, VISION_BACKENDS, language_target

from .reference import Reference
from .reference_checkpoint import CheckpointReference

ERRORS = "errors"  # the metric of a stage that was refused


class SkippedError(TinyLlavaEdgeError):
    """A stage is not computed, and why: what it needs is not at hand."""


@dataclass(frozen=True)
class Check:
    """One measured value, and the gate that judges it (None: only reported)."""

    metric: str
    value: float
    gate: Gate | None

    @property
    def passed(self) -> bool:
        """Whether the value is within its gate."""
        return self.gate is None or self.gate.passes(self.value)

    @property
    def bound(self) -> str:
        """The gate in words, as "<= 1e-08"."""
        return f"{'<=' if self.gate.kind == 'max' else '>='} {number(self.gate.limit)}" if self.gate else ""


def number(value: float) -> str:
    """A figure for people, in few digits."""
    if float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.6g}" if 0.9 < value < 1 else f"{value:.3g}"


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """One stage of the ladder for one variant.

    Attributes:
        stage: one of `gates.STAGES`.
        variant: "" where the stage is the same for all.
        detail: what was compared.
        checks: measured values; none where the stage was skipped.
        cause: why it probably failed; "" where it passed.
        skipped: why it was not computed; "" where it was.
    """

    stage: str
    variant: str = ""
    detail: str = ""
    checks: tuple[Check, ...] = ()
    cause: str = ""
    skipped: str = ""

    @property
    def place(self) -> str:
        """Stage and variant for people, and where it failed, the first figure that is not within its gate."""
        where = f"{self.stage} of {self.variant}" if self.variant else self.stage
        wrong = next((check for check in self.checks if not check.passed and check.metric != ERRORS), None)
        return f"{where} ({wrong.metric} {number(wrong.value)}, gate {wrong.bound})" if wrong else where

    @property
    def status(self) -> str:
        """passed, failed or skipped."""
        if self.skipped:
            return "skipped"
        return "passed" if all(check.passed for check in self.checks) else "failed"


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """What the stages need: the bundle, what is expected of it, and how much is to be compared.

    Attributes:
        vision: variants to verify; the first is used together with every language variant.
        language: variants to verify; the first is used together with every vision variant.
        runtime: name of the runtime whose results count.
        num_pictures: pictures whose tensors are compared.
        options: how the runtime is opened, but for the variants.
        further: it is one of a smaller budget of visual tokens, behind that of all that is the same for both.
    """

    bundle: Bundle
    reference: Reference
    vision: tuple[Variant, ...]
    language: tuple[Variant, ...]
    runtime: str
    num_pictures: int
    options: BackendOptions = field(default_factory=BackendOptions)
    further: bool = False

    def by_budget(self) -> "Iterator[Ladder]":
        """One for each budget of visual tokens; the first has all language variants, the others one."""
        whole = self.bundle.manifest.vision.num_tokens
        for number, budget in enumerate(dict.fromkeys(v.budget or whole for v in self.vision)):
            yield replace(
                self,
                bundle=self.bundle.at_tokens(budget),
                reference=self.reference.at_tokens(budget),
                vision=tuple(v for v in self.vision if (v.budget or whole) == budget),
                language=self.language[:1] if number else self.language,
                further=number > 0,
            )

    @property
    def reads_onnx(self) -> bool:
        """Whether the runtime computes the bundle's ONNX graphs, and can be asked for an inner value."""
        return bool(VISION_BACKENDS[RUNTIMES[self.runtime][0]].tap)

    @property
    def vision_compute(self) -> ComputeClass:
        """How the runtime's vision products round."""
        return VISION_BACKENDS[RUNTIMES[self.runtime][0]].compute

    @property
    def reads_language(self) -> str:
        """Target of the language files that the runtime computes: "gguf", "openvino", or "" for none."""
        return language_target(self.runtime)

    def file_reference(self) -> CheckpointReference:
        """What to hold the language model's files against.

        Raises:
            SkippedError: that needs a checkpoint, and a runtime that reads them.
        """
        if not isinstance(self.reference, CheckpointReference):
            raise SkippedError("give --checkpoint")
        if not self.reads_language:
            raise SkippedError(f"runtime {self.runtime} reads no file of the language model")
        return self.reference

    def gates(self, stage: str, variant: str, compute: ComputeClass = FLOAT32_CPU) -> tuple[Gate, ...]:
        """The gates of a stage for a variant: the one place where they are looked up; as `gates_of`."""
        return gates_of(stage, variant, self.bundle.manifest.language.architecture, compute)

    def options_of(self, vision: Variant, language: Variant | None = None) -> BackendOptions:
        """How to open the runtime with variants; torch has none, and only it takes a checkpoint."""
        if self.runtime == "torch":
            return self.options
        named = None if language is None else language.name
        return BackendOptions(vision=vision.name, language=named, threads=self.options.threads)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All stages of one run.

    Attributes:
        runtime, reference: whose results count, and what says what is right.
        results: in the order of the chain.
        versions: of packages.
        bundle: what people call it.
        source: what it is compared with, in words.
    """

    runtime: str
    reference: str
    results: tuple[StageResult, ...]
    versions: Mapping[str, str | None] = field(default_factory=dict)
    bundle: str = "the bundle"
    source: str = "its checkpoint"

    @property
    def first_failure(self) -> StageResult | None:
        """The failed stage nearest to the start of the chain: those behind it fail with it."""
        failed = [result for result in self.results if result.status == "failed"]
        return min(failed, key=lambda result: STAGES.index(result.stage)) if failed else None

    @property
    def passed(self) -> bool:
        """Whether every stage that was computed passed, and at least one was."""
        return self.first_failure is None and any(result.checks for result in self.results)

    @property
    def verdict(self) -> str:
        """One line for people, which begins with "verified", "different" or "nothing"."""
        first = self.first_failure
        if first is not None:
            return f"different: first at {first.place}; likely cause: {first.cause}"
        if not self.passed:
            return f"nothing could be compared: {self._skipped or 'no stage was computed'}"
        stages = {result.stage for result in self.results}
        compared = {result.stage for result in self.results if result.checks}
        said = f"verified: {self.bundle} is equal to {self.source} in {len(compared)} of {len(stages)} stages"
        return f"{said}; not checked: {self._skipped}" if self._skipped else said

    @property
    def _skipped(self) -> str:
        """The stages that were not computed, by the reason."""
        reasons: dict[str, list[str]] = {}
        for result in self.results:
            stages = reasons.setdefault(result.skipped, [])
            stages += [] if result.stage in stages else [result.stage]
        return ", ".join(f"{', '.join(stages)} ({why})" for why, stages in reasons.items() if why)

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`; what is not finite is spelled out, as JSON has no number for it."""
        first = self.first_failure
        results = []
        for result in self.results:
            checks = [
                {
                    "metric": check.metric,
                    "value": spelled(check.value),
                    "gate": check.gate and {**asdict(check.gate), "limit": spelled(check.gate.limit)},
                    "passed": check.passed,
                }
                for check in result.checks
            ]
            results.append({**asdict(result), "status": result.status, "checks": checks})
        return {
            "verdict": self.verdict,
            "passed": self.passed,
            "first_failure": None if first is None else {"stage": first.stage, "variant": first.variant},
            "cause": "" if first is None else first.cause,
            "runtime": self.runtime,
            "reference": self.reference,
            "versions": dict(self.versions),
            "stages": results,
        }


def spelled(value: float) -> float | str:
    """A figure for JSON, which has no infinity."""
    return value if math.isfinite(value) else str(value)


def judge(
    stage: str,
    variant: str,
    values: Mapping[str, float],
    *,
    detail: str,
    cause: Callable[[], str],
    gates: tuple[Gate, ...],
) -> StageResult:
    """Hold measured values against the stage's gates.

    Args:
        stage: one of `gates.STAGES`.
        variant: what the result is called.
        values: metric -> value; a gate without a value is our own mistake.
        detail: what was compared.
        cause: asked for the likely cause only where a gate fails.
        gates: those that count.
    """
    bounds = {gate.metric: gate for gate in gates}
    assert set(bounds) <= set(values), f"{stage} {variant}: not measured: {set(bounds) - set(values)}"
    checks = tuple(Check(metric, float(value), bounds.get(metric)) for metric, value in values.items())
    failed = not all(check.passed for check in checks)
    return StageResult(
        stage=stage, variant=variant, detail=detail, checks=checks, cause=cause() if failed else ""
    )


def refused(stage: str, variant: str, error: TinyLlavaEdgeError) -> StageResult:
    """A stage that was skipped, or failed because a part of the bundle was refused."""
    if isinstance(error, SkippedError):
        return StageResult(stage=stage, variant=variant, skipped=str(error))
    check = Check(ERRORS, 1, at_most(ERRORS, 0))
    return StageResult(stage=stage, variant=variant, checks=(check,), cause=" ".join(str(error).split()))
