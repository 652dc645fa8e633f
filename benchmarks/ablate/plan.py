"""`ablate --plan`: every cell, whether it is done, and what `train --plan` says of its stages."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyllava_edge.benchmarks.evals.commands import Record, run_command
from tinyllava_edge.console import print_json, progress, stdout
from tinyllava_edge.errors import TinyLlavaEdgeError
from tinyllava_edge.train.assemble import describe
from tinyllava_edge.work_places import temporary_place

from .grid import TRAIN, Grid, words
from .runner import Runner
from .steps import Cell, Training, started, without


def show_plan(grid: Grid, cells: Sequence[Cell], output: Path | None, *, as_json: bool) -> None:
    """Print a line for each cell, or one of JSON (docs/json.md#ablate---plan)."""
    runner = Runner((output or Path()) / "steps", grid.judge)
    known: dict[str, Record] = {}  # a seed changes nothing of what a training takes
    found: list[dict[str, Any]] = []
    with progress() as bar:
        task = bar.add_task("plan", total=len(cells))
        for cell in cells:
            is_done, stages = output is not None and bool(runner.scored(cell)), []
            for training in () if is_done else cell.training.stages:
                key = str([without(stage.options, ["seed"]) for stage in training.stages])
                known[key] = known.get(key) or _cost(training)
                stages.append(known[key])
            found.append({"name": cell.name, "key": cell.key, "done": is_done, "stages": stages})
            bar.advance(task)
    if as_json:
        trainings = {stage.key for cell in cells for stage in cell.training.stages}
        print_json({"grid": str(grid.path), "trainings": len(trainings), "cells": found})
        return
    for row in found:
        figures = "{steps} steps, {memory_bytes:,} bytes at most, {device_hours:.2g} h"
        costs = "; ".join(str(stage["error"] or figures.format(**stage)) for stage in row["stages"])
        state = "done" if row["done"] else costs
        stdout.print(f"{row['name']}: {state}", highlight=False, soft_wrap=True)


def _cost(training: Training) -> Record:
    try:
        with _start(training) as start:
            found = run_command(
                ["train", "--plan", *words(TRAIN, without(training.options, ["seed"])), *start]
            )
    except TinyLlavaEdgeError as error:
        return {"error": str(error), "steps": None, "memory_bytes": None, "device_hours": None}
    memory = found["memory_bytes"]["total"]
    return {"error": None, "memory_bytes": memory} | {name: found[name] for name in ("steps", "device_hours")}


@contextmanager
def _start(training: Training) -> Iterator[list[str]]:
    """What a later stage starts from, which is not there yet: what its first stage starts from."""
    first = training.stages[0].options
    if not training.before:
        yield []
    elif "from" in first:
        yield ["--from", first["from"]]
    else:
        parts = started(first, weights=False).parts
        assert parts is not None
        with temporary_place() as folder:
            describe(folder, parts)
            yield ["--from", str(folder)]
