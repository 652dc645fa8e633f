"""POPE: is there such a thing in the picture, yes or no (Li et al. 2023, arXiv 2305.10355).

Files as TinyLLaVA's scripts have them: `llava_pope_test.jsonl`, `coco/coco_pope_<split>.json` (JSON lines)
and `val2014/`. LLaVA pairs answers with labels by the order of lines; here by split, picture and question.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .questions import Question, image_in, read_json_lines, unlabelled

SUFFIX = "Answer the question using a single word or phrase."
ASKED_IN = "llava_pope_test.jsonl"
SPLITS = ("random", "popular", "adversarial")
_NO = {"no", "No", "not"}
_YES = {"yes", "Yes"}


def read_pope(folder: Path) -> list[Question]:
    """Questions with their label as the answer, and the split as the type.

    Raises:
        DataError: a file is missing or of another form, or a question has no label.
    """
    labels: dict[tuple[str, str, str], str] = {}
    for split in SPLITS:
        for line in read_json_lines(folder / "coco" / f"coco_pope_{split}.json", ("image", "text", "label")):
            labels[split, line["image"], line["text"]] = "no" if line["label"] == "no" else "yes"
    questions = []
    path = folder / ASKED_IN
    for record, line in enumerate(read_json_lines(path, ("question_id", "image", "text", "category"))):
        asked = line["text"].removesuffix(SUFFIX).strip()
        label = labels.get((line["category"], line["image"], asked))
        if label is None:
            raise unlabelled(path, line["question_id"])
        questions.append(
            Question(
                id=line["question_id"],
                image=image_in(folder / "val2014", line["image"], path),
                text=line["text"],
                answer=label,
                type=line["category"],
                record=record,
            )
        )
    return questions


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
            (q.answer, ("yes" if q.answer == "no" else "no", False) if a is None else parse_answer(a))
            for q, a in zip(questions, answers, strict=True)
            if q.type == split
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
