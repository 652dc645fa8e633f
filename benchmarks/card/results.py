"""What was measured of a bundle: rows of bench's reports and of eval's lines of JSON, from their files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tinyllava_edge.benchmarks.bench.compare import MAX_REPORT_BYTES, read_report
from tinyllava_edge.benchmarks.bench.notes import control_line, warning_lines, what_was_asked
from tinyllava_edge.benchmarks.bench.tables import tables_of
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import DataError, UsageError
from tinyllava_edge.user_files import read_user_text

from .document import Code, Line, Rows, Section


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Result(_Read):
    name: str
    accuracy: float | None = None
    ci95: list[float] | None = None
    blind_accuracy: float | None = None
    questions: int | None = None
    score: float | None = None
    asked: int | None = None
    rule: str | None = None


class _Evaluated(_Read):
    manifest_sha256: str
    benchmark: str | None
    blind: bool
    variants: list[_Result]


def speed_section(bundle: Bundle, path: Path) -> Section:
    """The rows that a report of bench has of this bundle, or of another one of the same checkpoint.

    Raises:
        DataError: it is no whole report.
        UsageError: it is of another model.
    """
    record = read_report(path)
    own, name = _which(bundle, record, path)
    try:
        cells = [cell for cell in record["cells"] if cell["model"] == name]
        rivals = record.get("rivals") if len(record["bundles"]) == 1 else None
        table = next(iter(tables_of({**record, "cells": cells, "rivals": rivals})))
        rows = [_shown_row(row, table.columns) for row in table.rows]
        lines = list(_speed_lines(bundle, record, own))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StopIteration) as error:
        raise DataError(f"{path}: no whole report ({type(error).__name__}). Measure again.") from None
    return Section("Speed, size, parity, accuracy", lines, [Rows(rows)])


def _shown_row(row: Mapping[str, str], columns: Sequence[str]) -> Mapping[str, Line]:
    return {name: Code(row[name]) if name == "cell" else row[name] for name in columns}


def _which(bundle: Bundle, record: Mapping[str, Any], path: Path) -> tuple[bool, str]:
    """Whether a report is of this very bundle, and its name there."""
    measured = record["bundles"]
    for key, value in (
        ("manifest_sha256", bundle.manifest_sha256),
        ("checkpoint_sha256", bundle.manifest.source.checkpoint_sha256),
    ):
        found = [one["name"] for one in measured if one[key] == value]
        if found:
            return key == "manifest_sha256", found[0]
    names = ", ".join(one["name"] for one in measured)
    raise UsageError(
        f"{path}: is of {names}, neither this bundle nor another one of its checkpoint. Give one of "
        f"{bundle.root}."
    )


def _speed_lines(bundle: Bundle, record: Mapping[str, Any], own: bool) -> Iterator[Line]:
    yield from warning_lines(dict(record))
    yield what_was_asked(dict(record))
    if not own:
        there = {(v.part, v.name) for v in bundle.manifest.variants}
        rows = [(cell["vision"], cell["language"]) for cell in record["cells"]]
        absent = {v for v, _ in rows if v and ("vision", v) not in there}
        absent |= {one for _, one in rows if one and ("language", one) not in there}
        said = "Measured on another bundle of the same checkpoint, not on this one."
        named = ", ".join(sorted(map(str, absent)))
        yield f"{said} This one lacks the variants {named}." if absent else said
    machine = record["machine"]
    parts = (machine["cpu"]["model"], f"{machine['cpu']['usable_cores']} cores", *machine["gpus"])
    yield f"Machine: {', '.join(map(str, parts))}, {machine['system']}, {str(machine['time_utc'])[:10]}."
    yield control_line(dict(record))
    yield (
        f"speed: times faster end to end than {record['baseline']}, with a 95 % interval. KL, top-1: the "
        "next token against torch float32."
    )
    if questions := record["questions"]:
        yield [
            f"accuracy: exact match on {questions['questions']} questions about {questions['pictures']} "
            "pictures of ",
            Code(str(questions["file"])),
            ", in brackets with mid-grey in the place of the pictures.",
        ]


def accuracy_rows(bundle: Bundle, path: Path) -> list[Mapping[str, Line]]:
    """Scores of each variant in what `eval --json` printed.

    Raises:
        FileError: it cannot be read.
        DataError: it is no such line.
        UsageError: it is of another bundle.
    """
    lines = [line for line in read_user_text(path, most=MAX_REPORT_BYTES).splitlines() if line[:1] == "{"]
    try:
        result = _Evaluated.model_validate(json.loads(lines[-1] if lines else ""))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:200]
        raise DataError(f"{path}: {where}: {first['msg']}. Give what eval --json printed.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: has no line of JSON. Give what eval --json printed.") from None
    if result.manifest_sha256 != bundle.manifest_sha256:
        raise UsageError(
            f"{path}: is of the bundle with the manifest {result.manifest_sha256[:12]}..., not of "
            f"{bundle.root} ({bundle.manifest_sha256[:12]}...)."
        )
    return [_score(one, result) for one in result.variants]


def _score(one: _Result, result: _Evaluated) -> Mapping[str, Line]:
    interval = f" [{one.ci95[0]:.3f}, {one.ci95[1]:.3f}]" if one.ci95 and len(one.ci95) == 2 else ""
    accuracy = "-" if one.accuracy is None else f"{one.accuracy:.3f}{interval}"
    asked = one.questions if one.questions is not None else one.asked
    return {
        "variant": Code(one.name),
        "questions of": Code(result.benchmark) if result.benchmark else "a file",
        "asked": "-" if asked is None else str(asked),
        "rule": Code(one.rule) if one.rule else "-",
        "score": f"{one.score:.1f}" if one.score is not None else accuracy,
        "blind": "all of it" if result.blind else _or_dash(one.blind_accuracy),
    }


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
