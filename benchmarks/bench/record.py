"""Run a comparison, and make the record that everything printed or drawn is derived from.

docs/measuring.md has the definitions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from tinyllava_edge.benchmarks.evals.scores import MAX_TOKENS, count_pictures
from tinyllava_edge.bundle import Bundle, sha256_of_file
from tinyllava_edge.image import open_picture
from tinyllava_edge.parity_files import read_parity

from .device_memory import device_kind
from .energy import energy_of, power_record
from .environment import machine_card
from .machine_load import busy_line, watch
from .measure import Quality, Session, measure_cells, score_cells
from .plan import Plan, cell_bytes, cell_files
from .power import watched_power
from .ratios import median_deviation, paired_ratio, percentile_90
from .worker import Cell

SCHEMA_VERSION = 2
STATES = ("cold", "warm", "cached")  # the first request of a process, later ones, a second question
STAGES = ("tokenize", "preprocess", "vision", "prefill", "decode")
UNSTABLE = 0.1  # median deviation over median, from which on a row is marked
_IDLE_S = 3.0  # in which the power that nothing takes is read
METRICS = {"total_ms": "end to end", "first_token_ms": "first token"}
Record = dict[str, Any]


def run_plan(
    plan: Plan,
    quality: Quality | None = None,
    on_run: Callable[[str], None] = lambda name: None,
    on_answer: Callable[[], None] = lambda: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Record:
    """Measure everything, and derive the figures.

    Args:
        plan: what to do.
        quality: questions to score every cell with, or None.
        on_run: called with a cell's name before each of its visits.
        on_answer: called after each answer to a question.
        warn: called with what makes the figures doubtful, as soon as it is known.
    """
    asked, card = _request_record(plan), machine_card()
    with watched_power() as power:
        before = watch(_IDLE_S if power.is_read else 1.0)
        idle = power.mean_so_far_w()
        if line := busy_line(before):
            warn(f"the machine is busy, so these figures will not be worth much: {line}")
        files = {cell.name: cell_files(cell, plan.bundles[cell.model]) for cell in plan.cells}
        sessions = measure_cells(plan.cells, plan.request, plan.amount, files, on_run, power)
    after = watch()
    if line := busy_line(after):
        warn(f"the machine is busy now: {line}")
    record: Record = {
        "schema_version": SCHEMA_VERSION,
        "bundles": [_bundle_record(name, bundle) for name, bundle in plan.bundles.items()],
        "request": asked,
        "amount": {**asdict(plan.amount), "runs": plan.amount.runs},
        "machine": card,
        "power": power_record(power, idle),
        "device_memory": device_kind() or None,
        "load": {"before": before, "after": after, "blocks": [session.blocks for session in sessions]},
        "baseline": plan.cells[0].name,
        "control": plan.cells[-1].name,
        "cells": [_cell_record(index, plan, sessions) for index in range(len(plan.cells))],
    }
    record["ratios"] = _ratios(record["cells"])
    record["control_passed"] = {
        ratio["metric"]: ratio["low"] <= 1 <= ratio["high"]
        for ratio in record["ratios"]
        if ratio["cell"] == record["control"]
    }
    record["questions"] = None
    if quality is not None:
        record["questions"] = {
            "file": quality.path.name,
            "sha256": sha256_of_file(quality.path),
            "questions": len(quality.questions),
            "pictures": count_pictures(quality.questions),
            "max_tokens": MAX_TOKENS,
        }
        scores = score_cells(plan.cells[:-1], plan.request, quality, on_answer)
        for cell in record["cells"]:
            cell["quality"] = scores.get(cell["name"])
    return record


def _request_record(plan: Plan) -> Record:
    """What is asked; a picture is known by its content.

    Raises:
        ImageError: the picture cannot be read.
    """
    picture = Path(plan.request.picture)
    width, height = open_picture(picture).size
    about = {"name": picture.name, "sha256": sha256_of_file(picture), "width": width, "height": height}
    return {**asdict(plan.request), "picture": about, "threads": plan.cells[0].options.threads}


def _bundle_record(name: str, bundle: Bundle) -> Record:
    manifest = bundle.manifest
    return {
        "name": name,
        "manifest_sha256": bundle.manifest_sha256,
        "checkpoint_sha256": manifest.source.checkpoint_sha256,
        "parameters": {part: value.parameters for part, value in manifest.parts.items()},
        "image_size": manifest.vision.image_size,
        "tokens_per_picture": manifest.vision.num_tokens,
    }


def _cell_record(index: int, plan: Plan, sessions: Sequence[Session]) -> Record:
    cell = plan.cells[index]
    bundle = plan.bundles[cell.model]
    found = [asdict(session.cells[index]) for session in sessions]
    requests, raw = _samples(found, "requests"), _samples(found, "raw")
    warm, cached = ([request[kind] for request in requests] for kind in ("warm", "cached"))
    totals = [sample["total_ms"] for sample in warm]
    parity = read_parity(bundle, cell.runtime)
    cold_loads = [session["load_cold_s"] for session in found if session["load_cold_s"] is not None]
    return {
        **{key: getattr(cell, key) for key in ("name", "model", "runtime")},
        **{key: getattr(cell.options, key) for key in ("vision", "language", "threads")},
        **found[0]["facts"],
        "size_bytes": cell_bytes(cell, bundle),
        "parity": None if parity is None else _cell_parity(cell, parity),
        "parity_passed": None if parity is None else parity.get("passed", False),
        "quality": None,
        "load_cold_s": median(cold_loads) if cold_loads else None,
        "load_warm_s": median(session["load_warm_s"] for session in found),
        "cold": _figures([session["warm_up"][0]["warm"] for session in found]),
        "warm": _figures(warm),
        "cached": _figures(cached),
        "raw": {name: median(sample[name] for sample in raw) for name in raw[0]} if raw else None,
        "stitching": _stitching(found) if raw else None,
        "peak_memory_bytes": max(session["peak_memory_bytes"] for session in found),
        "device_peak_bytes": max(filter(None, (s["device_peak_bytes"] for s in found)), default=None),
        "energy": energy_of(warm),
        "unstable": median_deviation(totals) > UNSTABLE * median(totals),
        "same_answer_every_run": all(
            len({sample["answer_sha256"] for sample in samples}) == 1 for samples in (warm, cached)
        ),
        "sessions": found,
    }


def _samples(sessions: Sequence[Record], job: str) -> list[Record]:
    return [sample for session in sessions for pair in session[job] for sample in pair]


def _figures(samples: Sequence[Record]) -> Record:
    """Medians of one kind of run."""
    totals, firsts = ([sample[metric] for sample in samples] for metric in METRICS)
    decode = [total - first for total, first in zip(totals, firsts, strict=True)]
    token_ms = median(ms / (s["generated_tokens"] - 1) for ms, s in zip(decode, samples, strict=True))
    stages = {stage: median(sample[f"{stage}_ms"] for sample in samples) for stage in STAGES[:-1]}
    evaluated = samples[0]["prompt_tokens"] - samples[0]["reused_tokens"]
    return {
        "runs": len(samples),
        "total_ms": median(totals),
        "total_ms_deviation": median_deviation(totals),
        "total_ms_p90": percentile_90(totals),
        "first_token_ms": median(firsts),
        "first_token_ms_p90": percentile_90(firsts),
        "token_ms": token_ms,
        "tokens_per_second": 1000 / token_ms,
        "prefill_tokens_per_second": 1000 * evaluated / stages["prefill"],
        "stages_ms": {**stages, "decode": median(decode)},
        "prompt_tokens": samples[0]["prompt_tokens"],
        "reused_tokens": samples[0]["reused_tokens"],
    }


def _stitching(sessions: Sequence[Record]) -> Record:
    """End to end over the sum of the request's own backend calls."""
    raw = [[[sample["total_ms"] for sample in pair] for pair in session["raw"]] for session in sessions]
    return asdict(paired_ratio(times_of(sessions, "total_ms"), raw))


def _ratios(cells: Sequence[Record]) -> list[Record]:
    """Of every cell but the first, how much faster it is than the first."""
    return [
        {
            "cell": cell["name"],
            "baseline": cells[0]["name"],
            "metric": metric,
            **asdict(ratio := paired_ratio(*(times_of(c["sessions"], metric) for c in (cells[0], cell)))),
            "verdict": ratio.verdict,
        }
        for cell in cells[1:]
        for metric in METRICS
    ]


def times_of(sessions: Sequence[Record], metric: str) -> list[list[list[float]]]:
    """Raw times of a cell's sessions in a record: sessions, blocks, two runs."""
    return [[[s["warm"][metric] for s in pair] for pair in session["requests"]] for session in sessions]


def shown_cells(record: Record) -> list[Record]:
    """All cells but the control."""
    return [cell for cell in record["cells"] if cell["name"] != record["control"]]


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
