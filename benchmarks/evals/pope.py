"""POPE: is there such a thing in the picture, yes or no (Li et al. 2023, arXiv 2305.10355)."""

from collections.abc import Sequence
from typing import Any

from .question import Question

_NO = {"no", "No", "not"}
_YES = {"yes", "Yes"}


def parse_answer(text: str) -> tuple[str, bool]:
    """Yes or no as LLaVA's evaluation reads it, and whether either word was there: what is not no is yes."""
    words = set(text.split(".")[0].replace(",", "").split(" "))
    return "no" if words & _NO else "yes", bool(words & (_NO | _YES))


def score_pope(questions: Sequence[Question], answers: Sequence[str | None]) -> dict[str, Any]:
    """Accuracy, precision, recall, F1 and share of yes of each split, in per cent; `score` is the mean F1.

    No answer, None, is the wrong one.
    """
    splits = {}
    for split in dict.fromkeys(question.type for question in questions):
        pairs = [
            (label, ("yes" if label == "no" else "no", False) if a is None else parse_answer(a))
            for label, a in (
                (q.answers[0], a) for q, a in zip(questions, answers, strict=True) if q.type == split
            )
        ]
        splits[split] = _score_split([(label, found) for label, (found, _) in pairs]) | {
            "unparsed": sum(1 for _, (_, parsed) in pairs if not parsed)
        }
    return {"score": sum(s["f1"] for s in splits.values()) / len(splits), "splits": splits}


def _score_split(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    hits = sum(1 for pair in pairs if pair == ("yes", "yes"))
    right = sum(1 for label, found in pairs if label == found)
    said, true = (sum(1 for pair in pairs if pair[side] == "yes") for side in (1, 0))
    precision, recall = hits / said if said else 0.0, hits / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    values = {"accuracy": right / len(pairs), "precision": precision, "recall": recall, "f1": f1}
    return {name: 100 * value for name, value in (values | {"yes_ratio": said / len(pairs)}).items()} | {
        "questions": len(pairs)
    }
