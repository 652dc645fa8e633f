"""How near each variant is to the checkpoint: figures beside their gates, as on the server's page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinyllava_edge.benchmarks.verify.ladder import number
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.runtimes.registry import RUNTIMES
from tinyllava_edge.runtimes.serve.proof import exported_of, verified_of

from .document import Code, Line, Rows

_MOST_ROWS = 400


def parity_tables(bundle: Bundle) -> Iterator[tuple[Line, Rows | None]]:
    """A line about each result that is there, and its table: what has a gate, and the worst tensors.

    Raises:
        BundleError: a file is not what `export` and `verify` write.
    """
    exported = exported_of(bundle)
    if exported is not None and (rows := _shown(exported["rows"])):
        said = (
            "By export, on the machine that wrote the files, against the checkpoint in torch float32. "
            "lowest_snr_db is of the worst tensor, inf where all values are the checkpoint's in that type:"
        )
        yield said + _first(rows), Rows(rows[:_MOST_ROWS])
    for runtime in RUNTIMES:
        if (verified := verified_of(bundle, runtime)) is not None:
            rows = _shown(verified["rows"])
            passed = "passed" if verified["passed"] else "NOT PASSED"
            line: list[str | Code] = ["By verify, runtime ", Code(runtime), f": {passed}. "]
            line += [Code(verified["verdict"])] if verified["verdict"] else []
            line += [_first(rows)]
            yield line, Rows(rows[:_MOST_ROWS]) if rows else None


def _first(rows: Sequence[object]) -> str:
    return f" The first {_MOST_ROWS} of {len(rows)} figures:" if len(rows) > _MOST_ROWS else ""


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Line]]:
    return [_row(row) for row in rows if row["gate"] or (row["stage"] == "weights" and row["metric"])]


def _row(row: Mapping[str, Any]) -> Mapping[str, Line]:
    gate = row["gate"]
    bound = f"{'<=' if gate['kind'] == 'max' else '>='} {_value(gate['limit'])}" if gate else "by type"
    return {
        "variant": Code(row["variant"]) if row["variant"] else "all",
        "stage": Code(row["stage"]),
        "metric": Code(row["metric"]),
        "value": _value(row["value"]),
        "gate": f"{bound}: NOT PASSED" if row["status"] == "failed" else bound,
    }


def _value(value: float | str) -> str:
    return value if isinstance(value, str) else number(value)
