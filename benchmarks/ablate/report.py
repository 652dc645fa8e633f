"""All cells of a grid as one record, one table and one plot, each accuracy with its 95 % interval."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tinyllava_edge import __version__
from tinyllava_edge.atomic_files import write_bytes, write_json
from tinyllava_edge.benchmarks.evals.commands import Record
from tinyllava_edge.benchmarks.evals.compare_cli import read_pairs
from tinyllava_edge.benchmarks.evals.shown import interval_text
from tinyllava_edge.benchmarks.evals.statistics import paired
from tinyllava_edge.device import read_machine

from .grid import Grid
from .runner import Runner
from .steps import Cell

REPORT, PLOT, KIND = "report.json", "report.png", "ablation"
_OF_A_SCORE = ("accuracy", "ci95", "blind_accuracy", "questions", "images", "types")
_OF_A_MODEL = ("picture_tokens", "parameters")
_OF_A_STAGE = ("steps", "seconds", "first_loss", "last_loss")
_COLUMNS = ("accuracy", "blind", "from the first", "p", "visual tokens", "parameters", "steps", "training")


def is_report(folder: Path) -> bool:
    """Whether a folder has the report of an ablation."""
    try:
        found = json.loads((folder / REPORT).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("kind") == KIND


def record_of(grid: Grid, cells: Sequence[Cell], runner: Runner, errors: Mapping[str, str]) -> Record:
    """What is known of every cell (docs/json.md#ablate).

    Args:
        grid: as it was read.
        cells: of it.
        runner: that knows what is done.
        errors: why a cell failed, by its key.
    """
    rows = [_row(cell, runner, errors.get(cell.key)) for cell in cells]
    if rows[0]["accuracy"] is not None:
        for cell, row in zip(cells[1:], rows[1:], strict=True):
            if row["accuracy"] is not None:
                files = runner.answers(cells[0]), runner.answers(cell)
                row["against_first"] = _compared(*files, *(file.stat().st_mtime_ns for file in files))
    machine = read_machine()
    return {
        "kind": KIND,
        "schema_version": 1,
        "version": __version__,
        "machine": [machine.cpu.model, *machine.gpus],
        "grid": grid.path.name,
        "summary": grid.summary,
        "complete": all(row["accuracy"] is not None or row["error"] is not None for row in rows),
        "cells": rows,
        "seeds": _over_seeds(rows),
    }


def _row(cell: Cell, runner: Runner, error: str | None) -> Record:
    score = runner.scored(cell)
    runs = [(stage.key, runner.known(stage.key)) for stage in cell.training.stages]
    return {
        "name": cell.name,
        "axes": dict(cell.axes),
        "key": cell.key,
        "error": error,
        **{name: score.get(name) for name in (*_OF_A_SCORE, *_OF_A_MODEL)},
        "failed": len(score.get("failed", ())),
        "stages": [{"key": key} | {name: run.get(name) for name in _OF_A_STAGE} for key, run in runs],
        "against_first": None,
    }


@cache
def _compared(first: Path, other: Path, *written: int) -> Record:
    """The paired difference of two files of answers, as `eval compare` has it; once of each as written."""
    _, rights, pictures = read_pairs(first, other)
    return paired(rights[0], rights[1], pictures)


def _over_seeds(rows: Sequence[Record]) -> list[Record]:
    """Of cells that differ in their seed alone: mean, lowest and highest accuracy."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if "seed" in row["axes"] and row["accuracy"] is not None:
            name = ", ".join(f"{axis} {value}" for axis, value in row["axes"].items() if axis != "seed")
            groups.setdefault(name, []).append(row["accuracy"])
    return [
        {"name": name, "seeds": len(a), "mean": sum(a) / len(a), "lowest": min(a), "highest": max(a)}
        for name, a in groups.items()
    ]


def write_report(folder: Path, record: Record) -> None:
    """Write report.json, report.md and, where matplotlib is installed, the plot."""
    write_json(folder / REPORT, record)
    lines = list(markdown_lines(record))
    if find_spec("matplotlib") is not None:
        _draw(record["cells"], folder / PLOT)
        lines += ["", f"![Accuracy of every cell with its interval]({PLOT})"]
    write_bytes(folder / "report.md", ("\n".join(lines) + "\n").encode())


def markdown_lines(record: Record) -> Iterator[str]:
    """The table, what failed, and what the figures are of."""
    cells = record["cells"]
    done = [cell for cell in cells if cell["accuracy"] is not None]
    yield f"# {_cell(record['summary'] or record['grid'])}"
    yield from ("", f"{len(done)} of {len(cells)} cells, on {', '.join(record['machine'])}.", "")
    yield f"| cell | {' | '.join(_COLUMNS)} |"
    yield "|---|---|" + "---:|" * (len(_COLUMNS) - 1)
    yield from (f"| {' | '.join((_cell(cell['name']), *_figures(cell)))} |" for cell in cells)
    if record["seeds"]:
        yield from ("", "| over seeds | seeds | mean | lowest | highest |", "|---|---:|---:|---:|---:|")
    for group in record["seeds"]:
        figures = "{seeds} | {mean:.3f} | {lowest:.3f} | {highest:.3f}".format(**group)
        yield f"| {_cell(group['name'])} | {figures} |"
    yield ""
    if done:
        yield (
            f"{done[0]['questions']} questions about {done[0]['images']} pictures. In brackets: 95 % "
            "intervals, of whole pictures drawn again, not of another training; p is McNemar's exact one. "
            "Blind is with mid-grey pictures. A training that cells share is in the time of each."
        )
    if any(cell["failed"] for cell in done):
        yield "A question that failed counts as wrong; `--resume` asks it again."


def _figures(cell: Record) -> Iterator[str]:
    if cell["accuracy"] is None:
        state = f"failed: {_cell(cell['error'])}" if cell["error"] else "not yet"
        yield from (state, *"-" * (len(_COLUMNS) - 1))
        return
    against, stages, blind = cell["against_first"], cell["stages"], cell["blind_accuracy"]
    yield interval_text(cell["accuracy"], cell["ci95"]) + failed_text(cell["failed"])
    yield "-" if blind is None else f"{blind:.3f}"
    yield interval_text(against["difference"], against["difference_ci95"], "+.3f") if against else "-"
    yield f"{against['mcnemar']['p']:.2g}" if against else "-"
    yield str(cell["picture_tokens"])
    yield f"{sum(cell['parameters'].values()):,}"
    yield " + ".join(str(stage["steps"]) for stage in stages)
    yield f"{sum(stage['seconds'] or 0 for stage in stages):.0f} s"


def failed_text(number: int) -> str:
    """What stands behind an accuracy that questions lower which failed."""
    return f" ({number} failed)" if number else ""


def _cell(text: str) -> str:
    """One line that no table ends at."""
    return " ".join(text.split()).replace("|", "/")


def _draw(cells: Sequence[Record], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.5 * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    done = [(place, cell) for place, cell in enumerate(cells) if cell["accuracy"] is not None]
    places = [place for place, _ in done]
    for place, cell in done:
        axes.plot(cell["ci95"], [place, place], color="#332288")
    axes.plot([c["accuracy"] for _, c in done], places, "o", color="#332288", label="95 % interval")
    axes.plot([c["blind_accuracy"] for _, c in done], places, "x", color="#CC6677", label="blind")
    axes.legend(fontsize="small", frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    names = [cell["name"].replace(", ", "\n") for cell in cells]
    axes.set_yticks(range(len(cells)), names, fontsize="small")
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_xlabel("accuracy")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
