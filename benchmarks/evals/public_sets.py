"""The public question sets of `eval --benchmark`: asked as upstream asks, scored by their own rules."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import UsageError

from . import pope, textvqa
from .pope import read_pope, score_pope
from .questions import Question
from .textvqa import read_textvqa, score_textvqa

PUBLIC_SETS = ("pope", "textvqa")
MAX_TOKENS = 128  # upstream's, for both


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """What is asked of a public set.

    Attributes:
        name: one of `PUBLIC_SETS`.
        file: that lists the questions.
        questions: in its order.
        num_all: questions that the whole set has.
        score: positions of questions, and what was answered to each, None where nothing was -> `score`, in
            per cent, and what it is made of.
    """

    name: str
    file: Path
    questions: list[Question]
    num_all: int
    score: Callable[[Sequence[int], Sequence[str | None]], dict[str, Any]]


def read_public_set(name: str, folder: Path, limit: int) -> PublicSet:
    """Read a set in the files of TinyLLaVA's own scripts.

    Args:
        name: one of `PUBLIC_SETS`.
        folder: with its files and pictures.
        limit: pictures that are asked about; 0 takes all.

    Raises:
        DataError: a file is missing or of another form.
        UsageError: there is no such set.
    """
    if name not in PUBLIC_SETS:
        raise UsageError(f"--benchmark {name!r} is not known. Known: {', '.join(PUBLIC_SETS)}.")
    people: list[tuple[str, ...]] = []
    if name == "pope":
        asked, file = read_pope(folder), folder / pope.ASKED_IN
    else:
        (asked, people), file = read_textvqa(folder), folder / textvqa.ASKED_IN
    chosen = sampled(asked, limit)
    questions = [asked[index] for index in chosen]

    def score(positions: Sequence[int], answers: Sequence[str | None]) -> dict[str, Any]:
        if people:
            return score_textvqa([people[chosen[position]] for position in positions], answers)
        return score_pope([questions[position] for position in positions], answers)

    return PublicSet(name=name, file=file, questions=questions, num_all=len(asked), score=score)


def sampled(questions: Sequence[Question], limit: int) -> list[int]:
    """Positions of all questions about `limit` pictures, the same ones each time; of all for 0."""
    pictures = sorted({str(question.image) for question in questions})
    if 0 < limit < len(pictures):
        pictures = random.Random(0).sample(pictures, limit)
    kept = set(pictures)
    return [index for index, question in enumerate(questions) if str(question.image) in kept]
