"""The public question sets of `eval --benchmark`: asked as upstream asks, scored by their own rules."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import UsageError

from .pope import read_pope, score_pope
from .questions import Question, check_pictures
from .textvqa import read_textvqa, score_textvqa

PUBLIC_SETS = ("pope", "textvqa")
MAX_TOKENS = 128  # upstream's, for both


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """What is asked of a public set.

    Attributes:
        questions: with those about one picture together.
        num_all: questions that the whole set has.
        score: answers -> `score`, in per cent, and what it is made of.
    """

    questions: list[Question]
    num_all: int
    score: Callable[[Sequence[str]], dict[str, Any]]


def read_public_set(name: str, folder: Path, limit: int) -> PublicSet:
    """Read a set in the files of TinyLLaVA's own scripts.

    Args:
        name: one of `PUBLIC_SETS`.
        folder: with its files and pictures.
        limit: pictures that are asked about; 0 takes all.

    Raises:
        DataError: a file or picture is missing or of another form.
        UsageError: there is no such set.
    """
    if name not in PUBLIC_SETS:
        raise UsageError(f"--benchmark {name!r} is not known. Known: {', '.join(PUBLIC_SETS)}.")
    people: list[tuple[str, ...]] = []
    if name == "pope":
        asked = read_pope(folder)
    else:
        asked, people = read_textvqa(folder)
    chosen = sampled(asked, limit)
    questions = [asked[index] for index in chosen]
    check_pictures(questions)
    score: Callable[[Sequence[str]], dict[str, Any]] = partial(score_pope, questions)
    if people:
        score = partial(score_textvqa, [people[index] for index in chosen])
    return PublicSet(questions=questions, num_all=len(asked), score=score)


def sampled(questions: Sequence[Question], limit: int) -> list[int]:
    """Positions of all questions about `limit` pictures, the same ones each time; of all for 0."""
    pictures = sorted({str(question.image) for question in questions})
    if 0 < limit < len(pictures):
        pictures = random.Random(0).sample(pictures, limit)
    kept = set(pictures)
    order = [index for index, question in enumerate(questions) if str(question.image) in kept]
    return sorted(order, key=lambda index: str(questions[index].image))  # pictures stay together
