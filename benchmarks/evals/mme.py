"""MME: two questions about each picture, yes or no (Fu et al. 2023, arXiv 2306.13394)."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from .question import Question

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork"),
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def parse_answer(text: str) -> str:
    """Yes, no or other, as the set's own tool reads it: from the first four characters."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score_mme(questions: Sequence[Question], answers: Sequence[str | None]) -> dict[str, Any]:
    """Per category: share of right answers and, as accuracy+, of pictures all of whose answers are right.

    Each in per cent; a category's score is their sum, 200 at most. `score` is the sum over the ten
    categories of perception, where all are there, as upstream's tables have it; else over those there are.
    """
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for question, answer in zip(questions, answers, strict=True):
        hit = answer is not None and parse_answer(answer) == question.answers[0].lower()
        right[question.type][question.picture_key].append(hit)
    found = {category: _category(list(pictures.values())) for category, pictures in right.items()}
    sums = {
        name: sum(found[category]["score"] for category in whole)
        for name, whole in (("perception", PERCEPTION), ("cognition", COGNITION))
        if set(whole) <= set(found)
    }
    all_of_them = sum(category["score"] for category in found.values())
    return {"score": sums.get("perception", all_of_them), **sums, "categories": found}


def _category(pictures: Sequence[Sequence[bool]]) -> dict[str, float]:
    answers = [hit for hits in pictures for hit in hits]
    accuracy = 100 * sum(answers) / len(answers)
    plus = 100 * sum(all(hits) for hits in pictures) / len(pictures)
    amount = {"questions": len(answers), "pictures": len(pictures)}
    return {"accuracy": accuracy, "accuracy_plus": plus, "score": accuracy + plus, **amount}
