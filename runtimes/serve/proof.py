"""What is proven of a served bundle: the results that `export` and `verify` stored, as rows of one table."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from tinyllava_edge.bounds import Gate
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BundleError
from tinyllava_edge.gates import gates_of
from tinyllava_edge.parity_files import EXPORT, REMOVE, read_parity
from tinyllava_edge.precisions import ROUNDED

from .errors import without_paths

Figure = Annotated[float, Field(allow_inf_nan=False)] | Literal["inf", "-inf", "nan"]


class _Gate(BaseModel):
    kind: Literal["max", "min"]
    limit: Figure


class _Check(BaseModel):
    metric: str
    value: Figure
    gate: _Gate | None
    passed: bool


class _Stage(BaseModel):
    stage: str
    variant: str
    detail: str = ""
    cause: str = ""
    skipped: str = ""
    checks: list[_Check]


class _Verified(BaseModel):
    verdict: str = ""
    passed: bool
    quick: bool = False
    stages: list[_Stage]


def proof_of(bundle: Bundle, runtime: str) -> dict[str, Any]:
    """What `export` found when it wrote a bundle, and `verify` of a runtime; None where that is not there.

    A row has `stage`, `variant`, `metric`, `value` ("inf", "-inf" or "nan" where it is no number), `gate`
    (`kind` "max" or "min", and `limit`; null where there is none), `status` (passed, failed, reported or
    skipped) and `detail`.

    Raises:
        BundleError: a file of results is damaged.
    """
    return {
        "source": {"name": without_paths(bundle.manifest.source.name), **_hashes(bundle)},
        "runtime": runtime,
        "variants": _variants(bundle),
        "verify": verified_of(bundle, runtime),
        "export": exported_of(bundle),
    }


def _hashes(bundle: Bundle) -> dict[str, str]:
    return {
        "checkpoint_sha256": bundle.manifest.source.checkpoint_sha256,
        "manifest_sha256": bundle.manifest_sha256,
    }


def _variants(bundle: Bundle) -> list[dict[str, Any]]:
    return [
        {
            "part": each.part,
            "name": each.name,
            "status": each.status,
            "bytes": bundle.variant_bytes(each),
        }
        for each in bundle.manifest.variants
    ]


def verified_of(bundle: Bundle, runtime: str) -> dict[str, Any] | None:
    """What `verify` of a runtime found: see `proof_of`."""
    found = read_parity(bundle, runtime)
    if found is None:
        return None
    try:
        result = _Verified.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        raise BundleError(f"parity/{runtime}.json: {where}: {first['msg']}. {REMOVE}") from None
    return {
        "verdict": without_paths(result.verdict),
        "passed": result.passed,
        "quick": result.quick,
        "rows": [row for stage in result.stages for row in _rows(stage)],
    }


def _rows(stage: _Stage) -> Iterator[dict[str, Any]]:
    said = without_paths(stage.skipped or stage.cause or stage.detail)
    for check in stage.checks:
        status = "failed" if not check.passed else "passed" if check.gate else "reported"
        gate = check.gate.model_dump() if check.gate else None
        yield _row(stage.stage, stage.variant, check.metric, check.value, gate, status, said)
    if not stage.checks:
        yield _row(stage.stage, stage.variant, "", None, None, "skipped", said)


def exported_of(bundle: Bundle) -> dict[str, Any] | None:
    """What `export` found of embeddings and features, and how far quantization moved the worst tensor."""
    found = read_parity(bundle, EXPORT)
    if found is None:
        return None
    rows: list[dict[str, Any]] = []
    for variant, report in _members(found.get("vision")):
        for source, prefix in (("rounded", ROUNDED), ("onnxruntime", "")):
            figures = dict(_members(report)).get(source)
            rows += _figures("connector", variant, prefix, figures)
            rows += _figures("tower", variant, prefix, dict(_members(figures)).get("tower"))
        rows += _figures("tower", variant, "", {"max_activation": dict(_members(report)).get("largest")})
    for variant, report in _members(found.get("language")):
        worst = dict(_members(report)).get("lowest_snr_db")
        value = "inf" if worst is None else worst
        if value == "inf" or _is_figure(value):
            said = "of the worst tensor; inf: every value is as in the checkpoint, in the variant's type"
            rows.append(_row("weights", variant, "lowest_snr_db", value, None, "reported", said))
    return {"rows": rows}


def _figures(stage: str, variant: str, prefix: str, figures: Any) -> Iterator[dict[str, Any]]:
    try:
        gates = {gate.metric: gate for gate in gates_of(stage, variant)}
    except BundleError:  # of another version of this program
        gates = {}
    for metric, value in _members(figures):
        if _is_figure(value):
            # A rounded evaluation has gates of its own where the graph is run, too, else those of the stage.
            gate = gates.get(prefix + metric) or gates.get(metric)
            yield _row(stage, variant, prefix + metric, value, *_judged(gate, value))


def _judged(gate: Gate | None, value: float) -> tuple[dict[str, Any] | None, str]:
    if gate is None:
        return None, "reported"
    return {"kind": gate.kind, "limit": gate.limit}, "passed" if gate.passes(value) else "failed"


def _row(
    stage: str, variant: str, metric: str, value: Any, gate: Any, status: str, detail: str = ""
) -> dict[str, Any]:
    return {
        "stage": stage,
        "variant": variant,
        "metric": metric,
        "value": value,
        "gate": gate,
        "status": status,
        "detail": detail,
    }


def _members(value: Any) -> list[tuple[str, Any]]:
    """Of what should be an object: files of other versions have more or less."""
    return list(value.items()) if isinstance(value, Mapping) else []


def _is_figure(value: Any) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 60
    return is_whole or (isinstance(value, float) and math.isfinite(value))
