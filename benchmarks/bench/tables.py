"""The tables of a report, as rows of text: Markdown and HTML show the same ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from .device_memory import LABELS
from .figures import STAGES, STATES, Record, shown_cells
from .growth import AXES
from .peers.tables import rival_tables

Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """Rows under a title; every row has the same columns, the first of them names it."""

    title: str
    rows: Sequence[Row]

    @property
    def columns(self) -> list[str]:
        """Those that are not all dashes."""
        return [name for name in self.rows[0] if any(row[name] != "-" for row in self.rows)]


def tables_of(record: Record) -> Iterator[Table]:
    """All tables that a record has figures for."""
    cells = shown_cells(record)
    yield Table("Speed, size, parity, accuracy", [_speed_row(record, cell) for cell in cells])
    yield Table("Start, and a second question", [_start_row(cell) for cell in cells])
    if several_budgets(cells):
        yield Table("By visual tokens", [_budget_row(cell) for cell in cells])
    if any(cell.get("floors") for cell in cells):
        yield Table("Beside the machine's floor", [_floor_row(cell) for cell in cells])
    if growth := record.get("growth"):
        yield Table(f"Growth of {growth['cell']}", [_growth_row(curve) for curve in growth["curves"]])
    for title, rival_rows in rival_tables(record):
        yield Table(title, rival_rows)
    yield Table("Stages", [_stage_row(cell, state) for cell in cells for state in STATES if cell[state]])


def _speed_row(record: Record, cell: Record) -> Row:
    """Speed beside size, parity and accuracy."""
    warm, parity, quality = cell["warm"], cell["parity"] or {}, cell["quality"]
    return {
        "cell": cell["name"],
        "MB": f"{cell['size_bytes'] / 1e6:.1f}",
        "KL": _or_dash(parity.get("mean_kld"), ".1e"),
        "top-1": _or_dash(parity.get("top1_agreement"), ".3f"),
        "accuracy (blind)": f"{quality['accuracy']:.3f} ({quality['blind_accuracy']:.3f})"
        if quality
        else "-",
        "end to end": f"{warm['total_ms']:.1f} +- {warm['total_ms_deviation']:.1f}",
        "p90": _or_dash(warm["total_ms_p90"], ".1f"),
        "speed": _speed(record, cell),
        "first token": f"{warm['first_token_ms']:.1f}",
        "per token": f"{warm['token_ms']:.2f}",
        "tokens/s": f"{warm['tokens_per_second']:.0f}",
        **_peaks(record, cell),
        "J/answer": _or_dash((cell.get("energy") or {}).get("whole_j"), ".2f"),
    }


def several_budgets(cells: Sequence[Record]) -> bool:
    """Whether rows differ in the visual tokens of a picture; reports of before there were any do not say."""
    return len({cell.get("tokens_per_picture") for cell in cells}) > 1


def _budget_row(cell: Record) -> Row:
    """What fewer visual tokens save before the first token, and what they cost."""
    quality, warm = cell["quality"] or {}, cell["warm"]
    against = quality.get("against_most_tokens")
    return {
        "cell": cell["name"],
        "visual tokens": str(cell["tokens_per_picture"]),
        "first token": f"{warm['first_token_ms']:.1f}",
        "vision": _or_dash(warm["stages_ms"]["vision"], ".1f"),
        "prefill": _or_dash(warm["stages_ms"]["prefill"], ".1f"),
        "accuracy": _with_interval(quality["accuracy"], quality["ci95"], ".3f") if quality else "-",
        "difference from the most tokens": _with_interval(
            against["difference"], against["difference_ci95"], "+.3f"
        )
        if against
        else "-",
    }


def _with_interval(value: float, interval: Sequence[float], form: str) -> str:
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def _peaks(record: Record, cell: Record) -> Row:
    """The host's peak, and the GPU's beside it where there is one; older reports do not say."""
    host = f"{peak / 1e6:.0f}" if (peak := cell["peak_memory_bytes"]) else "-"
    if not (kind := record.get("device_memory")):
        return {"peak MB": host}
    device = cell["device_peak_bytes"]
    return {"host peak MB (VmHWM)": host, LABELS[kind]: "-" if device is None else f"{device / 1e6:.0f}"}


def _start_row(cell: Record) -> Row:
    """What a start costs, and what everything around the libraries does."""
    cold, warm, cached = (cell[state] for state in STATES)
    cached = cached or {"total_ms": None, "first_token_ms": None}
    return {
        "cell": cell["name"],
        "load cold s": _or_dash(cell["load_cold_s"], ".2f"),
        "load warm s": f"{cell['load_warm_s']:.2f}",
        "first request": f"{cold['total_ms']:.1f} (x{cold['total_ms'] / warm['total_ms']:.2f})",
        "second question": _or_dash(cached["total_ms"], ".1f"),
        "its first token": _or_dash(cached["first_token_ms"], ".1f"),
        "prefill tokens/s": _or_dash(warm["prefill_tokens_per_second"], ".0f"),
        "stitching": interval_text(cell["stitching"], 3) if cell["stitching"] else "-",
    }


def _stage_row(cell: Record, state: str) -> Row:
    """Where the time goes: cold, warm or with a cached picture."""
    figures = cell[state]
    return {
        "cell": cell["name"],
        "picture": state,
        **{stage: _or_dash(figures["stages_ms"][stage], ".2f") for stage in STAGES},
        "first token": f"{figures['first_token_ms']:.2f}",
        "end to end": f"{figures['total_ms']:.2f}",
        "positions": str(figures["prompt_tokens"]),
        "reused": _or_dash(figures["reused_tokens"], ".0f"),
    }


def _floor_row(cell: Record) -> Row:
    """Each stage's time, its floor, and how much of the time that is."""
    floors, warm = cell.get("floors") or {}, cell["warm"]
    took = {**warm["stages_ms"], "token": warm["token_ms"]}
    row = {"cell": cell["name"]}
    for stage, name in (("vision", "vision"), ("prefill", "prefill"), ("token", "per token")):
        floor = floors.get(stage)
        row[f"{name} ms"] = _or_dash(took[stage], ".2f") if floor else "-"
        row[f"{name} floor"] = f"{floor['ms']:.2f}{_of_type(floor)}" if floor else "-"
        share = floor["share"] if floor else None
        row[f"{name} % of floor"] = "-" if share is None else f"{100 * share:.0f}"
    row["MB read a token"] = f"{floors['token']['bytes'] / 1e6:.1f}" if floors else "-"
    return row


def _growth_row(curve: Record) -> Row:
    """A stage's first and last point on an axis, and how it grows between them."""
    fit, (first, *_, last) = curve["exponent"], curve["points"]
    return {
        "with": AXES[curve["axis"]],
        "stage": curve["stage"],
        "from": f"{first['x']}: {median(first['ms']):.2f} ms",
        "to": f"{last['x']}: {median(last['ms']):.2f} ms",
        "exponent": f"{fit['exponent']:.2f} [{fit['low']:.2f}, {fit['high']:.2f}]" if fit else "-",
    }


def _of_type(floor: Record) -> str:
    return f" ({floor['type']})" if "type" in floor else ""


def _or_dash(value: float | str | None, form: str) -> str:
    return "-" if value is None else format(float(value), form)  # "nan" is a text in a result of `verify`


def interval_text(ratio: Record, digits: int) -> str:
    """A ratio with its interval."""
    return f"{ratio['ratio']:.{digits}f} [{ratio['low']:.{digits}f}, {ratio['high']:.{digits}f}]"


def _speed(record: Record, cell: Record) -> str:
    """The ratio, and the claim only where it may be made."""
    for ratio in record["ratios"]:
        if ratio["cell"] == cell["name"] and ratio["metric"] == "total_ms":
            valid = record["control_passed"].get("total_ms") and not record.get("quick")
            return f"{interval_text(ratio, 2)} {ratio['verdict'] if valid else 'no claim'}"
    return "1" if cell["name"] == record["baseline"] else "-"
