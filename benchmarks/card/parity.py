"""How near each variant is to the checkpoint: figures beside their gates, as on the server's page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinyllava_edge.benchmarks.verify.ladder import number
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.parity_files import EXPORT, read_parity
from tinyllava_edge.runtimes.registry import RUNTIMES
from tinyllava_edge.runtimes.serve.proof import proof_of

from .document import Code, Line, Rows

_MOST_ROWS = 400


def parity_tables(bundle: Bundle) -> Iterator[tuple[Line, Rows | None]]:
    """A line about each result that is there, and its table: what has a gate, and the worst tensors.

    Raises:
        BundleError: a file is not what `export` and `verify` write.
    """
    found = {runtime: proof_of(bundle, runtime) for runtime in RUNTIMES}
    exported = next(iter(found.values()))["export"]
    if exported is not None and (rows := _shown(exported["rows"])):
        said = (
            "By export, on the machine that wrote the files, against the checkpoint in torch float32. "
            "lowest_snr_db is of the worst tensor, inf where all values are the checkpoint's in that type:"
        )
        yield said, Rows(rows[:_MOST_ROWS])
    for runtime, proof in found.items():
        if (verified := proof["verify"]) is not None:
            rows = _shown(verified["rows"])
            passed = "passed" if verified["passed"] else "NOT PASSED"
            line: list[str | Code] = ["By verify, runtime ", Code(runtime), f": {passed}. "]
            line += [Code(verified["verdict"])] if verified["verdict"] else []
            line += [f" The first {_MOST_ROWS} of {len(rows)} figures:"] * (len(rows) > _MOST_ROWS)
            yield line, Rows(rows[:_MOST_ROWS]) if rows else None


def measured_by(bundle: Bundle) -> list[str]:
    """Names of the results that are bound to this manifest."""
    return [name for name in (EXPORT, *RUNTIMES) if read_parity(bundle, name) is not None]


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
