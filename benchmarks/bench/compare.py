"""`tinyllava-edge bench compare`: two reports against each other, cell by cell.

They were not measured in turns, so whatever changed between them on the machine is in the ratios: unlike
environments are refused, and nothing is claimed that the intervals of both do not carry.
"""

import json
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from pydantic import ValidationError

from tinyllava_edge.errors import DataError
from tinyllava_edge.user_files import read_user_text

from .figures import METRICS, Record, shown_cells, times_of
from .ratios import Ratio, unpaired_ratio
from .report_schema import SCHEMA_VERSION, Report, is_deeper

# What decides how fast the same program is. Free memory, the time and our own source are not of these.
_MACHINE = (
    *("system", "python", "cpu", "gpus", "jetson", "distribution", "virtualization", "cpu_settings"),
    *("memory_settings", "variables"),
)
_OWN_PACKAGE = "tinyllava-edge"
MAX_REPORT_BYTES = 32 << 20
# What may differ a little on one machine: bytes by so much (a kernel keeps some for itself), and versions
# behind their second number, which are patches.
_BYTES_APART = 0.05
_BYTES = ("machine memory_total_bytes", "machine memory_settings swap_bytes")
_PATCHED = ("machine system", "machine python")
_MINOR = re.compile(r"\D*\d+\.\d+")
_MAX_DEPTH = 20  # of ours: 9


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that is not the same in the two reports."""

    what: str
    first: Any
    second: Any

    def __str__(self) -> str:
        return f"{self.what}: {_short(self.first)} / {_short(self.second)}"


@dataclass(frozen=True, kw_only=True)
class CellComparison:
    """One cell that both reports have: how many times faster it is in the second one."""

    name: str
    metric: str
    first_ms: float
    second_ms: float
    ratio: Ratio


def read_report(path: Path) -> Record:
    """Read a report.json, or the one in a directory.

    Raises:
        DataError: there is none, or it is of another version or form.
    """
    file = path / "report.json" if path.is_dir() else path
    text = read_user_text(file, most=MAX_REPORT_BYTES, error=DataError)
    try:
        record: Any = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON ({error}).") from None
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{file}: expected a bench report of schema version {SCHEMA_VERSION}, found {shown(version)}. "
            "Measure again."
        )
    try:
        Report.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{file}: {where[:200]}: {first['msg']}. Measure again.") from None
    if is_deeper(record, _MAX_DEPTH):
        raise DataError(f"{file}: nested deeper than {_MAX_DEPTH} levels, so it is no bench report.")
    return dict(record)


def _finite(text: str) -> float:
    """A JSON number; NaN and what is too large for one are no times."""
    if not isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def differences(first: Record, second: Record) -> list[Difference]:
    """What makes the times of two reports incomparable: machine, versions, request, models."""
    return [found for found in _all_differences(first, second) if not _is_small(found)]


def small_differences(first: Record, second: Record) -> list[Difference]:
    """What differs and hardly matters: patches of kernel and Python, a little memory."""
    return list(filter(_is_small, _all_differences(first, second)))


def _all_differences(first: Record, second: Record) -> list[Difference]:
    packages = first["machine"]["versions"].keys() & second["machine"]["versions"].keys() - {_OWN_PACKAGE}
    return list(_different("", _conditions(first, packages), _conditions(second, packages)))


def _is_small(found: Difference) -> bool:
    values = (found.first, found.second)
    if found.what in _BYTES and all(isinstance(value, int) for value in values):
        return bool(abs(found.first - found.second) <= _BYTES_APART * max(values))
    if found.what in _PATCHED and all(isinstance(value, str) for value in values):
        one, other = (_MINOR.match(value) for value in values)
        return one is not None and other is not None and one[0] == other[0]
    return False


def source_difference(first: Record, second: Record) -> Difference | None:
    """Our own version and commit: the difference that a comparison usually is about."""
    states = [
        {"version": record["machine"]["versions"][_OWN_PACKAGE], **(record["machine"]["source"] or {})}
        for record in (first, second)
    ]
    if states[0] == states[1]:
        return None
    return Difference(what="tinyllava-edge", first=states[0], second=states[1])


def compare_cells(first: Record, second: Record) -> list[CellComparison]:
    """Every cell that both have, for each metric."""
    others = {_key(cell): cell for cell in shown_cells(second)}
    return [
        CellComparison(
            name=cell["name"],
            metric=metric,
            first_ms=cell["warm"][metric],
            second_ms=other["warm"][metric],
            ratio=unpaired_ratio(*(times_of(c["sessions"], metric) for c in (cell, other))),
        )
        for cell in shown_cells(first)
        if (other := others.get(_key(cell))) is not None and _has_blocks(cell) and _has_blocks(other)
        for metric in METRICS
    ]


def unmatched(first: Record, second: Record) -> list[str]:
    """Names of the cells that only one of the reports has."""
    cells = [*shown_cells(first), *shown_cells(second)]
    both = set(map(_key, shown_cells(first))) & set(map(_key, shown_cells(second)))
    return [cell["name"] for cell in cells if _key(cell) not in both]


def _has_blocks(cell: Record) -> bool:
    """A row of a report that ended early may have none."""
    return any(session["requests"] for session in cell["sessions"])


def _key(cell: Record) -> tuple[str, ...]:
    return tuple(cell[name] for name in ("model", "runtime", "vision", "language"))


def _conditions(record: Record, packages: Set[str]) -> dict[str, Any]:
    """What must be alike; a package that one of two reports never asked for tells nothing."""
    machine = record["machine"]
    memory_total = {"memory_total_bytes": (machine["memory"] or {}).get("total_bytes")}
    return {
        "machine": {**{name: machine[name] for name in _MACHINE}, **memory_total},
        "versions": {name: value for name, value in machine["versions"].items() if name in packages},
        "request": record["request"],
        "model": {
            bundle["name"]: {name: bundle[name] for name in ("checkpoint_sha256", "manifest_sha256")}
            for bundle in record["bundles"]
        },
    }


def _different(where: str, first: Any, second: Any) -> Iterator[Difference]:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in dict.fromkeys([*first, *second]):
            yield from _different(f"{where} {name}".strip(), first.get(name), second.get(name))
    elif first != second:
        yield Difference(what=where, first=first, second=second)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
