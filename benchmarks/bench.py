"""`tinyllava-edge bench`: the same request on torch and on every variant of a bundle; time, parity, size.

What is compared, in which order, and the record that comes of it. docs/measuring.md has the definitions.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinyllava_edge.bundle import REFERENCE_FOLDER, Bundle, Variant
from tinyllava_edge.embedded import checkpoint_path

from .compare import median, median_deviation, percentile_90, speed_ratio
from .environment import load_marks, machine_card
from .measure import CellResult, measure_cells
from .worker import Cell, Request

SCHEMA_VERSION = 1
CONTROL = "again"  # suffix of the A/A control's name
STAGES = ("tokenize", "preprocess", "vision", "prefill", "decode")
UNSTABLE = 0.1  # median deviation over median, from which on a row is marked
_TIMES = ("total_ms", "first_token_ms")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a comparison does.

    Attributes:
        cells: the first one is what the others are compared with; the last one is the first one again.
        request: what every run does.
        num_blocks: two runs of each cell in each.
    """

    cells: tuple[Cell, ...]
    request: Request
    num_blocks: int


def plan_cells(
    bundle: Bundle,
    *,
    runtime: str,
    vision: Variant,
    language: tuple[Variant, ...],
    checkpoint: Path | None,
    sources: Path | None = None,
    allow_pickle: bool = False,
    threads: int | None,
) -> tuple[Cell, ...]:
    """Torch float32 where there is a checkpoint, every language variant, and the first cell once more."""
    source: dict[str, Any] = {
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "sources": None if sources is None else str(sources),
        "allow_pickle": allow_pickle,
    }

    def cell(name: str, runtime: str, language: str | None) -> Cell:
        return Cell(
            name=name,
            runtime=runtime,
            bundle=str(bundle.root),
            vision=None if language is None else vision.name,
            language=language,
            threads=threads,
            **(source if runtime == "torch" else {}),
        )

    cells = [cell("torch fp32", "torch", None)] if checkpoint is not None else []
    cells += [cell(f"{vision.name} + {variant.name}", runtime, variant.name) for variant in language]
    first = cells[0]
    return (*cells, cell(f"{first.name} {CONTROL}", first.runtime, first.language))


def find_checkpoint(bundle: Bundle) -> Path | None:
    """The checkpoint that the bundle says it came from, where it is here and torch is installed."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        return None
    from tinyllava_edge.errors import CheckpointError
    from tinyllava_edge.model.checkpoint import checkpoint_sha256

    path = checkpoint_path(bundle.manifest.source.name)
    try:
        matches = checkpoint_sha256(path) == bundle.manifest.source.checkpoint_sha256
    except (CheckpointError, OSError):
        return None
    return path if matches else None


def default_picture(bundle: Bundle) -> Path:
    """The first picture of the bundle's reference."""
    reference = json.loads(bundle.path(f"{REFERENCE_FOLDER}/reference.json").read_text(encoding="utf-8"))
    return bundle.path(f"{REFERENCE_FOLDER}/{reference['pictures'][0]}")


def run_plan(
    bundle: Bundle, plan: Plan, parity: dict[str, Any] | None, on_run: Callable[[str], None]
) -> dict[str, Any]:
    """Measure, and make the record that everything printed or drawn is derived from."""
    card = machine_card()
    before = load_marks()
    results = measure_cells(plan.cells, plan.request, plan.num_blocks, on_run)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "bundle": {"name": bundle.manifest.source.name, "manifest_sha256": bundle.manifest_sha256},
        "request": asdict(plan.request),
        "num_blocks": plan.num_blocks,
        "machine": card,
        "load": {"before": before, "after": load_marks()},
        "parity_passed": None if parity is None else parity["passed"],
        "cells": [_cell_record(result, bundle, parity) for result in results],
    }
    baseline = results[0]
    record["ratios"] = [
        {
            "cell": result.cell.name,
            "baseline": baseline.cell.name,
            "metric": metric,
            **asdict(ratio := speed_ratio(_blocks(baseline, metric), _blocks(result, metric))),
            "verdict": ratio.verdict,
        }
        for result in results[1:]
        for metric in _TIMES
    ]
    control = [ratio for ratio in record["ratios"] if ratio["cell"] == results[-1].cell.name]
    record["control_passed"] = all(ratio["low"] <= 1 <= ratio["high"] for ratio in control)
    return record


def _blocks(result: CellResult, metric: str) -> list[tuple[float, float]]:
    return [(one[metric], other[metric]) for one, other in result.blocks]


def _cell_record(result: CellResult, bundle: Bundle, parity: dict[str, Any] | None) -> dict[str, Any]:
    samples = result.samples
    totals = [sample["total_ms"] for sample in samples]
    deviation = median_deviation(totals)
    tokens = [ms for sample in samples for ms in sample["next_token_ms"]]
    return {
        **asdict(result.cell),
        "size_bytes": _size_bytes(result.cell, bundle),
        "parity": _cell_parity(result.cell, parity),
        "load_s": result.load_s,
        "first_run_ms": result.warm_up[0]["total_ms"],
        "runs": len(samples),
        "total_ms": median(totals),
        "total_ms_deviation": deviation,
        "total_ms_p90": percentile_90(totals),
        "first_token_ms": median([sample["first_token_ms"] for sample in samples]),
        "next_token_ms": median(tokens),
        "tokens_per_second": 1000 / median(tokens),
        "stages_ms": {stage: median([_stage_ms(sample, stage) for sample in samples]) for stage in STAGES},
        "peak_memory_bytes": max(sample["peak_memory_bytes"] for sample in samples),
        "unstable": deviation > UNSTABLE * median(totals),
        "same_answer_every_run": len({sample["answer_sha256"] for sample in samples}) == 1,
        "warm_up": result.warm_up,
        "blocks": result.blocks,
    }


def _stage_ms(sample: dict[str, Any], stage: str) -> float:
    if stage == "decode":
        return float(sum(sample["next_token_ms"]))
    return float(sample[f"{stage}_ms"])


def _size_bytes(cell: Cell, bundle: Bundle) -> int:
    """What must be on the device: the two variants, or the checkpoint's weights."""
    if cell.language is None:
        from tinyllava_edge.model.checkpoint import weight_files

        assert cell.checkpoint is not None
        return sum(path.stat().st_size for path in weight_files(Path(cell.checkpoint)))
    vision, language = bundle.variant("vision", cell.vision), bundle.variant("language", cell.language)
    return bundle.variant_bytes(vision) + bundle.variant_bytes(language)


def _cell_parity(cell: Cell, parity: dict[str, Any] | None) -> dict[str, float] | None:
    """Distance of the next token's distribution from torch float32, from `verify`; torch itself has none."""
    if cell.language is None or parity is None:
        return None
    labels = (cell.language, f"{cell.language}, vision {cell.vision}")
    for stage in parity["stages"]:
        if stage["stage"] == "teacher_forced" and stage["variant"] in labels:
            return {check["metric"]: check["value"] for check in stage["checks"]}
    return None
