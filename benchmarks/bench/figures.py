"""Figures of a comparison's rows, derived from their raw samples. docs/measuring.md has the definitions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.parity_files import read_parity

from .energy import energy_of
from .measure import CellSession
from .plan import cell_bytes
from .ratios import median_deviation, paired_ratio, percentile_90

STATES = ("cold", "warm", "cached")  # the first request of a process, later ones, a second question
STAGES = ("tokenize", "preprocess", "vision", "prefill", "decode")
UNTOLD = "not told apart"  # what a rival spends before its first token without saying on what
UNSTABLE = 0.1  # median deviation over median, from which on a row is marked
METRICS = {"total_ms": "end to end", "first_token_ms": "first token"}
Record = dict[str, Any]


def cell_record(cell: Cell, bundle: Bundle, sessions: Sequence[CellSession]) -> Record:
    """A row, from the sessions in which its cell answered at all.

    Where no block was finished, its figures are those of the warm-up; `blocks` then is 0.
    """
    found = [asdict(session) for session in sessions]
    requests, raw = _samples(found, "requests"), _samples(found, "raw")
    measured = requests or [sample for session in found for sample in session["warm_up"]]
    # A rival may keep nothing for a second question, and not tell its stages apart.
    warm, cached = ([r[kind] for r in measured if kind in r] for kind in ("warm", "cached"))
    totals = [sample["total_ms"] for sample in warm]
    parity = read_parity(bundle, cell.runtime)
    cold_loads = [session["load_cold_s"] for session in found if session["load_cold_s"] is not None]
    stitching = paired_ratio(times_of(found, "total_ms"), _raw_times(found))
    return {
        **{key: getattr(cell, key) for key in ("name", "model", "runtime")},
        **{key: getattr(cell.options, key) for key in ("vision", "language", "threads")},
        **found[0]["facts"],
        "tokens_per_picture": _opened(cell, bundle).manifest.vision.num_tokens,
        "size_bytes": cell_bytes(cell, bundle),
        "parity": None if parity is None else _cell_parity(cell, parity),
        "parity_passed": None if parity is None else parity.get("passed", False),
        "quality": None,
        "blocks": len(requests) // 2,
        "load_cold_s": median(cold_loads) if cold_loads else None,
        "load_warm_s": median(session["load_warm_s"] for session in found),
        "cold": _figures([session["warm_up"][0]["warm"] for session in found]),
        "warm": _figures(warm),
        "cached": _figures(cached) if cached else None,
        "raw": {name: median(sample[name] for sample in raw) for name in raw[0]} if raw else None,
        "stitching": None if stitching is None else asdict(stitching),
        "peak_memory_bytes": max(session["peak_memory_bytes"] for session in found),
        "device_peak_bytes": max(filter(None, (s["device_peak_bytes"] for s in found)), default=None),
        "energy": energy_of(warm),
        "unstable": median_deviation(totals) > UNSTABLE * median(totals),
        "same_answer_every_run": all(
            len({sample["answer_sha256"] for sample in samples}) <= 1 for samples in (warm, cached)
        ),
        "sessions": found,
    }


def _opened(cell: Cell, bundle: Bundle) -> Bundle:
    """As the cell sees it: with one budget of visual tokens."""
    return bundle.at_tokens(cell.options.tokens, cell.options.vision)


def _samples(sessions: Sequence[Record], job: str) -> list[Record]:
    return [sample for session in sessions for pair in session[job] for sample in pair]


def _figures(samples: Sequence[Record]) -> Record:
    """Medians of one kind of run."""
    totals, firsts = ([sample[metric] for sample in samples] for metric in METRICS)
    decode = [total - first for total, first in zip(totals, firsts, strict=True)]
    token_ms = median(ms / (s["generated_tokens"] - 1) for ms, s in zip(decode, samples, strict=True))
    stages = {stage: _median([sample[f"{stage}_ms"] for sample in samples]) for stage in STAGES[:-1]}
    evaluated = samples[0]["prompt_tokens"] - (samples[0]["reused_tokens"] or 0)
    prefill = stages["prefill"]
    return {
        "runs": len(samples),
        "total_ms": median(totals),
        "total_ms_deviation": median_deviation(totals),
        "total_ms_p90": percentile_90(totals),
        "first_token_ms": median(firsts),
        "first_token_ms_p90": percentile_90(firsts),
        "token_ms": token_ms,
        "tokens_per_second": 1000 / token_ms,
        "prefill_tokens_per_second": 1000 * evaluated / prefill if prefill else None,
        "stages_ms": {**stages, "decode": median(decode)},
        "tokens": samples[0]["generated_tokens"],
        "prompt_tokens": samples[0]["prompt_tokens"],
        "reused_tokens": samples[0]["reused_tokens"],
    }


def _median(values: Sequence[float | None]) -> float | None:
    """Of a stage that is timed in every run, or None."""
    known = [value for value in values if value is not None]
    return median(known) if len(known) == len(values) else None


def _raw_times(sessions: Sequence[Record]) -> list[list[list[float]]]:
    return [[[sample["total_ms"] for sample in pair] for pair in session["raw"]] for session in sessions]


def ratios_of(cells: Sequence[Record]) -> Iterator[Record]:
    """Of every cell but the first, how much faster it is than the first; only where both have blocks."""
    for cell in cells[1:]:
        for metric in METRICS:
            ratio = paired_ratio(*(times_of(each["sessions"], metric) for each in (cells[0], cell)))
            if ratio is not None:
                yield {
                    "cell": cell["name"],
                    "baseline": cells[0]["name"],
                    "metric": metric,
                    **asdict(ratio),
                    "verdict": ratio.verdict,
                }


def times_of(sessions: Sequence[Record], metric: str) -> list[list[list[float]]]:
    """Raw times of a cell's sessions in a record: sessions, blocks, two runs."""
    return [[[s["warm"][metric] for s in pair] for pair in session["requests"]] for session in sessions]


def shown_cells(record: Record) -> list[Record]:
    """All cells but the control."""
    return [cell for cell in record["cells"] if cell["name"] != record["control"]]


def drawn_rows(record: Record) -> list[Record]:
    """All rows that a picture shows: the cells, and rivals behind them in the same form."""
    rows = shown_cells(record)
    for rival in (record.get("rivals") or {}).get("rows", ()):
        states = {
            state: figures and {**figures, "stages_ms": _all_stages(figures)}
            for state, figures in ((state, rival[state]) for state in ("warm", "cached"))
        }
        rows.append({**rival, **states, "parity": rival["accuracy"], "quality": None})
    return rows


def _all_stages(figures: Record) -> Record:
    """With decode, which follows from the rest, and what is in no stage that the rival tells."""
    known = {stage: ms for stage, ms in figures["stages_ms"].items() if ms is not None}
    rest = figures["first_token_ms"] - sum(known.values()) if len(known) < len(STAGES) - 1 else 0.0
    decode = figures["total_ms"] - figures["first_token_ms"]
    return {**known, UNTOLD: max(0.0, rest), "decode": decode}


def _cell_parity(cell: Cell, parity: Mapping[str, Any]) -> dict[str, float | None] | None:
    """Distance of the next token's distribution from torch float32, from `verify`; torch itself has none.

    `verify` runs every language variant with its first vision variant, and names the others.
    """
    vision, language = cell.options.vision, cell.options.language
    first = (parity.get("variants") or {"vision": [vision]})["vision"][0]
    label = language if vision == first else f"{language}, vision {vision}"
    for stage in parity.get("stages", ()):
        if stage["stage"] == "teacher_forced" and stage["variant"] == label and stage["checks"]:
            return {check["metric"]: _finite(check["value"]) for check in stage["checks"]}
    return None


def _finite(value: float | str) -> float | None:
    return None if isinstance(value, str) else value  # what is not finite is spelled out there
