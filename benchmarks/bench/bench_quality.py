"""Accuracy beside every speed: the same questions to every cell of a comparison, seeing and blind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.benchmarks.evals.questions import Question, read_questions
from tinyllava_edge.benchmarks.evals.scores import count_pictures, summarize
from tinyllava_edge.bundle import sha256_of_file

from .measure import opened_worker
from .worker import Cell, Request

MAX_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A file of questions, read and complete.

    Attributes:
        path: the file.
        images: folder that its image paths are relative to.
        questions: what is in it.
    """

    path: Path
    images: Path
    questions: tuple[Question, ...]

    @classmethod
    def read(cls, path: Path, images: Path) -> "Quality":
        """Read the questions.

        Raises:
            DataError: the file is damaged, or pictures are missing.
        """
        return cls(path=path, images=images, questions=tuple(read_questions(path, images)))

    def about(self) -> dict[str, Any]:
        """Which questions they are."""
        return {
            "file": self.path.name,
            "sha256": sha256_of_file(self.path),
            "questions": len(self.questions),
            "pictures": count_pictures(self.questions),
            "max_tokens": MAX_TOKENS,
        }

    def count_answers(self, num_cells: int) -> int:
        """Answers that `score_cells` announces."""
        return 2 * num_cells * len(self.questions)

    def score_cells(
        self, cells: Sequence[Cell], request: Request, on_answer: Callable[[], None]
    ) -> dict[str, dict[str, Any]]:
        """Scores of each cell by its name, and how its answers differ from the first one's.

        Raises:
            BackendError: a cell cannot be opened.
        """
        found: dict[str, dict[str, Any]] = {}
        for cell in cells:
            with opened_worker(cell, request) as worker:
                worker.read()
                found[cell.name] = worker.ask(
                    "answers",
                    on_answer,
                    questions=str(self.path),
                    images=str(self.images),
                    max_tokens=MAX_TOKENS,
                )
        first = found[cells[0].name]["seeing"]
        return {
            name: summarize(self.questions, answers["seeing"], answers["blind"], first)
            for name, answers in found.items()
        }
