"""Rivals' part of a comparison's record: their rows, those that are absent, and the ratios."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from tinyllava_edge.benchmarks.bench.measure import CellSession
from tinyllava_edge.benchmarks.bench.ratios import median_deviation, paired_ratio

from .accuracy import Accuracy
from .rivals import Absent, RivalCell

Record = dict[str, Any]
Times = list[list[list[float]]]
# What is compared, in the order of a table: its name, and the kind of run that it is of.
METRICS = {
    "vision_ms": ("vision", "warm"),
    "prefill_ms": ("prefill", "warm"),
    "first_token_ms": ("first token", "warm"),
    "token_ms": ("per token", "warm"),
    "total_ms": ("end to end", "warm"),
    "second_first_token_ms": ("second question's first token", "cached"),
}
_LANGUAGE = ("prefill_ms", "token_ms")  # all that may be compared with a rival that sees no picture
_STAGES = ("tokenize", "preprocess", "vision", "prefill")


def rivals_record(
    cells: Sequence[tuple[str, Sequence[CellSession]]],
    rivals: Sequence[tuple[RivalCell, Sequence[CellSession]]],
    absent: Sequence[Absent],
    accuracy: Mapping[str, Accuracy],
    reference: str,
) -> Record:
    """What `--peers` adds to a record.

    Args:
        cells: the bundle's own by name, all their sessions.
        rivals: theirs.
        absent: rows that were not measured.
        accuracy: of `measure_accuracy`.
        reference: the name of what it is held against.
    """
    rows = [_row(cell, sessions, accuracy.get(cell.name)) for cell, sessions in rivals]
    return {
        "reference": reference,
        "accuracy": {name: accuracy[name] for name, _ in cells if name in accuracy},
        "rows": [row for row in rows if row is not None],
        "absent": [asdict(one) for one in absent],
        "ratios": list(_ratios(cells, rivals)),
    }


def _row(cell: RivalCell, sessions: Sequence[CellSession], accuracy: Accuracy | None) -> Record | None:
    """One rival's figures; None where it never answered, which the record says elsewhere."""
    found = [asdict(session) for session in sessions if session.warm_up]
    if not found:
        return None
    pairs = [sample for session in found for pair in session["requests"] for sample in pair]
    measured = pairs or [sample for session in found for sample in session["warm_up"]]
    cold = [session["load_cold_s"] for session in found if session["load_cold_s"] is not None]
    cached = [sample["cached"] for sample in measured if "cached" in sample]
    return {
        "name": cell.name,
        "rival": cell.rival,
        "threads": cell.task.threads,
        **found[0]["facts"],
        "size_bytes": cell.size_bytes,
        "accuracy": accuracy,
        "load_cold_s": median(cold) if cold else None,
        "load_warm_s": median(session["load_warm_s"] for session in found),
        "first_request_ms": median(session["warm_up"][0]["warm"]["total_ms"] for session in found),
        "warm": _figures([sample["warm"] for sample in measured]),
        "cached": _figures(cached) if cached else None,
        "peak_memory_bytes": max(session["peak_memory_bytes"] for session in found),
        "sessions": found,
    }


def _figures(samples: Sequence[Record]) -> Record:
    """Medians of one kind of run; a stage that a rival does not tell is None."""
    totals = [sample["total_ms"] for sample in samples]
    token_ms = median(map(_token_ms, samples))
    return {
        "runs": len(samples),
        "stages_ms": {stage: _median([s[f"{stage}_ms"] for s in samples]) for stage in _STAGES},
        "first_token_ms": median(sample["first_token_ms"] for sample in samples),
        "token_ms": token_ms,
        "tokens_per_second": 1000 / token_ms,
        "total_ms": median(totals),
        "total_ms_deviation": median_deviation(totals),
        "prompt_tokens": samples[0]["prompt_tokens"],
        "reused_tokens": samples[0]["reused_tokens"],
        "same_answer_every_run": len({sample["answer_sha256"] for sample in samples}) == 1,
    }


def _token_ms(sample: Record) -> float:
    """Mean time of a token behind the first one (TPOT)."""
    return float((sample["total_ms"] - sample["first_token_ms"]) / (sample["generated_tokens"] - 1))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if len(known) == len(values) else None


def _ratios(
    cells: Sequence[tuple[str, Sequence[CellSession]]],
    rivals: Sequence[tuple[RivalCell, Sequence[CellSession]]],
) -> Iterator[Record]:
    """Ours over theirs of neighbouring runs, for every pair of rows and whatever both of them tell."""
    for name, ours in cells:
        for cell, theirs in rivals:
            facts = next((session.facts for session in theirs if session.facts), {})
            for metric in _LANGUAGE if facts.get("language_only") else METRICS:
                one, other = (_times(sessions, metric) for sessions in (ours, theirs))
                if one and other and (ratio := paired_ratio(one, other)) is not None:
                    # `paired_ratio` says how much faster the second one is, which is ours over theirs.
                    yield {"cell": name, "rival": cell.name, "metric": metric, **asdict(ratio)}


def _times(sessions: Sequence[CellSession], metric: str) -> Times | None:
    """Times of a row by session and block, or None where it does not tell them."""
    try:
        found = [[[_value(run, metric) for run in pair] for pair in session.requests] for session in sessions]
    except KeyError:
        return None
    known = all(value for session in found for pair in session for value in pair)  # no 0 has a ratio
    return found if known else None  # type: ignore[return-value]


def _value(run: Record, metric: str) -> float | None:
    sample = run[METRICS[metric][1]]
    if metric == "token_ms":
        return _token_ms(sample)
    value: float | None = sample[metric.removeprefix("second_")]
    return value
