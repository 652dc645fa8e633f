"""How often a model's short answers are right by their rule; how sure that figure is, `statistics` says."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tinyllava_edge.image import open_picture
from tinyllava_edge.runtimes.model import Model

from .question import Question
from .rules import RULES, folded
from .statistics import Array, interval, paired
from .tables import TablePicture

MAX_TOKENS = 16  # of a short answer
MID_GREY = (128, 128, 128)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Share of right answers with a 95 % interval."""

    accuracy: float
    interval: tuple[float, float]
    questions: int

    def to_json(self) -> dict[str, Any]:
        """As it stands in a result."""
        return {"accuracy": self.accuracy, "ci95": list(self.interval), "questions": self.questions}


def ask_all(
    model: Model,
    questions: Iterable[Question],
    *,
    blind: bool = False,
    max_tokens: int = MAX_TOKENS,
    on_answer: Callable[[], None] = lambda: None,
) -> list[str]:
    """Greedy answers, each question by itself.

    Args:
        model: an opened bundle.
        questions: in an order that keeps those about one picture together, which is faster.
        blind: show a mid-grey picture of the same size instead of each picture.
        max_tokens: most tokens of an answer.
        on_answer: called after each answer.
    """
    answers = []
    for question in questions:
        answers.append(ask(model, question, blind=blind, max_tokens=max_tokens))
        on_answer()
    return answers


def ask(model: Model, question: Question, *, blind: bool = False, max_tokens: int = MAX_TOKENS) -> str:
    """The answer to one question, as in `ask_all`; without the spaces around it, as upstream's."""
    pictures = []
    if question.image is not None:
        shown = question.image
        picture = open_picture(shown.content if isinstance(shown, TablePicture) else shown)
        pictures = [Image.new("RGB", picture.size, MID_GREY) if blind else picture]
    return model.ask(question.text, pictures, max_tokens=max_tokens).strip()


def count_pictures(questions: Sequence[Question]) -> int:
    """Different pictures that questions are about."""
    return len({question.image for question in questions} - {None})


def credit(question: Question, answer: str | None) -> float:
    """How right an answer is by the question's rule, between 0 and 1; none is wrong."""
    return 0.0 if answer is None else RULES[question.rule].credit(question, answer)


def score(questions: Sequence[Question], answers: Sequence[str | None]) -> dict[str, Score]:
    """Scores of each question type, and of all under the key "all"."""
    right = _credits(questions, answers)
    members: dict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        members[question.type].append(index)
    groups = {**dict(sorted(members.items())), "all": list(range(len(questions)))}
    return {name: _score(right[indices], _clusters(questions, indices)) for name, indices in groups.items()}


def overall(questions: Sequence[Question], answers: Sequence[str | None]) -> Score:
    """The score of all."""
    return _score(_credits(questions, answers), _clusters(questions, range(len(questions))))


def compare(
    questions: Sequence[Question], base: Sequence[str | None], other: Sequence[str | None]
) -> dict[str, Any]:
    """How two variants' answers differ: agreement, and `statistics.paired` of their credits."""
    same = np.mean([_alike(a, b) for a, b in zip(base, other, strict=True)])
    clusters = _clusters(questions, range(len(questions)))
    return {
        "agreement": float(same),
        **paired(_credits(questions, base), _credits(questions, other), clusters),
    }


def _credits(questions: Sequence[Question], answers: Sequence[str | None]) -> Array:
    return np.array([credit(q, a) for q, a in zip(questions, answers, strict=True)], dtype=np.float64)


def _alike(first: str | None, second: str | None) -> bool:
    return first == second if first is None or second is None else folded(first) == folded(second)


def summarize(
    questions: Sequence[Question],
    answers: Sequence[str | None],
    blind: Sequence[str | None] | None,
    first: Sequence[str | None] | None,
) -> dict[str, Any]:
    """Scores as they stand in a result: by which rule, overall, by type, blind, and against another variant.

    Args:
        questions: what was asked.
        answers: what was answered; None, where nothing could be, is wrong.
        blind: what was answered without seeing, or None.
        first: answers of the variant that this one is compared with, or None.
    """
    scores = score(questions, answers)
    blind_scores = {} if blind is None else score(questions, blind)
    rule = RULES[questions[0].rule]
    result: dict[str, Any] = {"rule": rule.name, "right_is": rule.says, **scores.pop("all").to_json()}
    result["types"] = {kind: value.to_json() for kind, value in scores.items()}
    result["blind_accuracy"] = blind_scores.pop("all").accuracy if blind_scores else None
    if rule.name != "exact":
        result["figures"] = rule.figures(questions, answers)
    result["blind_types"] = {kind: value.accuracy for kind, value in blind_scores.items()}
    if first is not None:
        result["against_first"] = compare(questions, first, answers)
    return result


def _clusters(questions: Sequence[Question], indices: Iterable[int]) -> list[str]:
    asked = (questions[index] for index in indices)
    return [question.picture_key if question.image else str(question.id) for question in asked]


def _score(right: Array, clusters: Sequence[str]) -> Score:
    return Score(accuracy=float(right.mean()), interval=interval(right, clusters), questions=len(right))
