"""Questions that every cell is scored with, after the times were taken."""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.benchmarks.evals.questions import Question
from tinyllava_edge.benchmarks.evals.scores import compare, summarize
from tinyllava_edge.precisions import split_budget

from .worker import Request
from .worker_process import Worker


@dataclass(frozen=True)
class Quality:
    """Questions to score every cell with, the file that they are from, and the folder of their pictures."""

    path: Path
    images: Path
    questions: Sequence[Question]


def score_cells(
    cells: Sequence[Cell],
    request: Request,
    quality: Quality,
    on_answer: Callable[[], None],
    scores: dict[str, dict[str, Any]],
) -> None:
    """Score each cell, seeing and blind, with how its answers differ from the first one's.

    Args:
        cells: what to score; the first one is what the others are compared with.
        request: what the processes are told at their start.
        quality: what to ask.
        on_answer: called after each answer.
        scores: of each cell by its name; filled as they come, so that what ends it leaves what was done.

    Raises:
        BackendError: a cell cannot be opened.
    """
    first: Any = None
    said: dict[str, Any] = {}
    for cell in cells:
        with closing(Worker(cell, request)) as worker:
            worker.read()
            files = {"questions": str(quality.path), "images": str(quality.images)}
            answers = worker.ask("answers", on_answer, **files)
        first = first or answers["seeing"]
        said[cell.name] = answers["seeing"]
        scores[cell.name] = summarize(quality.questions, answers["seeing"], answers["blind"], first)
        most = largest_of(cell, cells)
        if most is not cell and most.name in said:
            against = compare(quality.questions, said[most.name], answers["seeing"])
            scores[cell.name]["against_most_tokens"] = {"name": most.name, **against}


def largest_of(cell: Cell, cells: Sequence[Cell]) -> Cell:
    """The cell that differs from this one in nothing but more visual tokens, where there is one."""
    alike = [one for one in cells if _but_for_tokens(one) == _but_for_tokens(cell)]
    return max(alike, key=_tokens)


def _but_for_tokens(cell: Cell) -> tuple[Any, ...]:
    vision = cell.options.vision and split_budget(cell.options.vision)[0]
    return cell.model, cell.runtime, replace(cell.options, vision=vision, tokens=None)


def _tokens(cell: Cell) -> float:
    """Those of a budget; a variant whose name says none has the most."""
    own = split_budget(cell.options.vision)[1] if cell.options.vision else cell.options.tokens
    return math.inf if own is None else own
