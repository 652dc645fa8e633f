"""How near each variant is to the checkpoint: figures beside their gates, from a bundle's parity/ folder."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from pydantic import BaseModel, ConfigDict, ValidationError

from tinyllava_edge.benchmarks.verify.ladder import number
from tinyllava_edge.bounds import Gate
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BundleError
from tinyllava_edge.gates import gates_of
from tinyllava_edge.parity_files import EXPORT, read_parity
from tinyllava_edge.precisions import EXACT_TYPES, ROUNDED, TENSOR_SNR_DB
from tinyllava_edge.runtimes.registry import RUNTIMES

from .document import Code, Line, Rows

_MOST_ROWS = 400
Row = Mapping[str, Line]


class _Read(BaseModel):
    model_config = ConfigDict(strict=True)


class _Gate(_Read):
    kind: str
    limit: float | str


class _Check(_Read):
    metric: str
    value: float | str
    gate: _Gate | None = None
    passed: bool = True


class _Stage(_Read):
    stage: str
    variant: str
    status: str = ""
    checks: list[_Check]


class _Verified(_Read):
    passed: bool
    verdict: str = ""
    reference: str = ""
    stages: list[_Stage] = []


def parity_tables(bundle: Bundle) -> Iterator[tuple[Line, Rows | None]]:
    """A line about each result that is there, and its table; the newest rule's gates beside the figures.

    Raises:
        BundleError: a file is not what `export` and `verify` write.
    """
    found = read_parity(bundle, EXPORT)
    rows = [] if found is None else list(_export_rows(bundle, found))
    if rows:
        said = "By export, on the machine that wrote the files, against the checkpoint in torch float32:"
        yield said, Rows(rows)
    for runtime in RUNTIMES:
        if (found := read_parity(bundle, runtime)) is not None:
            yield _verified(found, runtime)


def measured_by(bundle: Bundle) -> list[str]:
    """Names of the results that are bound to this manifest."""
    return [name for name in (EXPORT, *RUNTIMES) if read_parity(bundle, name) is not None]


def _export_rows(bundle: Bundle, found: Mapping[str, Any]) -> Iterator[Row]:
    for variant in bundle.manifest.variants:
        part = found.get(variant.part)
        figures = part.get(variant.name) if isinstance(part, dict) else None
        if not isinstance(figures, dict):
            continue
        name = f"{variant.part} {variant.name}"
        if variant.part == "vision":
            yield from _vision_rows(name, variant.name, figures)
        else:
            yield from _tensor_rows(name, figures)


def _vision_rows(name: str, variant: str, figures: Mapping[str, Any]) -> Iterator[Row]:
    for how in ("onnxruntime", "rounded"):
        values = figures.get(how)
        if not isinstance(values, dict):
            continue
        for stage, measured in (("tower", values.get("tower")), ("connector", values)):
            gates = _gates(stage, variant)
            for metric, value in measured.items() if isinstance(measured, dict) else ():
                gate = gates.get(ROUNDED + metric if how == "rounded" else metric) or gates.get(metric)
                if gate is not None and _is_number(value):
                    yield _row(name, f"{stage}, {how}", metric, value, gate)
    gate = _gates("tower", variant).get("max_activation")
    if gate is not None and _is_number(figures.get("largest")):
        yield _row(name, "tower, range", "max_activation", figures["largest"], gate)


def _tensor_rows(name: str, figures: Mapping[str, Any]) -> Iterator[Row]:
    """Of a language file: its worst tensor; each type has a rule of its own."""
    counts = figures.get("counts")
    types = [kind.upper() for kind in counts] if isinstance(counts, dict) else []
    rules = [
        f"{kind} exact"
        if kind in EXACT_TYPES
        else f"{kind} >= {TENSOR_SNR_DB[kind]:g}"
        if kind in TENSOR_SNR_DB
        else f"{kind}: none"
        for kind in types
    ]
    lowest = figures.get("lowest_snr_db")
    value = f"{number(lowest)} dB" if _is_number(lowest) else "no value differs"
    yield {
        "variant": Code(name),
        "stage": "weights",
        "metric": "snr_db of the worst tensor",
        "value": value,
        "gate": ", ".join(rules) or "-",
    }


def _gates(stage: str, variant: str) -> dict[str, Gate]:
    try:
        return {gate.metric: gate for gate in gates_of(stage, variant)}
    except BundleError:  # a variant of a later release
        return {}


def _row(name: str, stage: str, metric: str, value: float, gate: Gate) -> Row:
    bound = f"{'<=' if gate.kind == 'max' else '>='} {number(gate.limit)}"
    return {
        "variant": Code(name),
        "stage": stage,
        "metric": metric,
        "value": number(value),
        "gate": bound if gate.passes(value) else f"{bound}: NOT PASSED",
    }


def _verified(found: Mapping[str, Any], runtime: str) -> tuple[Line, Rows | None]:
    try:
        result = _Verified.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:200]
        raise BundleError(f"parity/{runtime}.json: {where}: {first['msg']}. Verify again.") from None
    rows: list[Row] = [
        {
            "variant": Code(stage.variant) if stage.variant else "all",
            "stage": Code(stage.stage),
            "metric": Code(check.metric),
            "value": _value(check.value),
            "gate": f"{'<=' if check.gate.kind == 'max' else '>='} {_value(check.gate.limit)}"
            + ("" if check.passed else ": NOT PASSED"),
        }
        for stage in result.stages
        for check in stage.checks
        if check.gate is not None
    ]
    said: list[str | Code] = ["By verify, runtime ", Code(runtime)]
    said += [", against ", Code(result.reference)] if result.reference else []
    said += [": ", "passed" if result.passed else "NOT PASSED", ". "]
    said += [Code(result.verdict)] if result.verdict else []
    if len(rows) > _MOST_ROWS:
        said.append(f" The first {_MOST_ROWS} of {len(rows)} figures:")
    return said, Rows(rows[:_MOST_ROWS]) if rows else None


def _value(value: float | str) -> str:
    return value if isinstance(value, str) else number(value)


def _is_number(value: Any) -> TypeGuard[float]:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 60
    return is_whole or isinstance(value, float)
