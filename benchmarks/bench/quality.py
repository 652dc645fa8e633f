"""Questions that every cell is scored with, after the times were taken."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.benchmarks.evals.questions import Question
from tinyllava_edge.benchmarks.evals.scores import summarize

from .worker import Cell, Request
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
    for cell in cells:
        with closing(Worker(cell, request)) as worker:
            worker.read()
            files = {"questions": str(quality.path), "images": str(quality.images)}
            answers = worker.ask("answers", on_answer, **files)
        first = first or answers["seeing"]
        scores[cell.name] = summarize(quality.questions, answers["seeing"], answers["blind"], first)
