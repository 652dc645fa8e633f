"""TextVQA: short answers about text in pictures, against ten people's (Singh et al. 2019, arXiv 1904.08920).

Files as TinyLLaVA's scripts have them: `llava_textvqa_val_v051_ocr.jsonl` (its question_id is the picture's
id), `TextVQA_0.5.1_val.json` and `train_images/`. An answer counts as in the VQA challenge: what three people
said is right, one or two give thirds, each person's vote left out in turn; after a normalisation of spelling.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import DataError
from tinyllava_edge.user_files import read_user_text

from .questions import Question, image_in, read_json_lines, unlabelled

ASKED_IN = "llava_textvqa_val_v051_ocr.jsonl"
PEOPLE = 10
_NUMBERS = ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(max(index - 1, 0)) for index, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
# Contractions without their apostrophe are given it back, as the challenge's own table does.
_CONTRACTIONS = """
aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't
shouldn't wasn't weren't won't wouldn't ain't could've might've must've should've would've they've
you've we've i've he'd he's how'd how's i'm it'd it'll let's she's somebody's that's there's they'd
they'll they're what's where's who'd who's you'd you'll you're o'clock ma'am y'all
"""
_WITH_APOSTROPHE = {text.replace("'", ""): text for text in _CONTRACTIONS.split()}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_POINT = re.compile(r"\.(?!\d)")


def read_textvqa(folder: Path) -> tuple[list[Question], list[tuple[str, ...]]]:
    """Questions, and what people answered to each.

    Raises:
        DataError: a file is missing or of another form, or a question has no annotation.
    """
    path = folder / "TextVQA_0.5.1_val.json"
    text = read_user_text(path, error=DataError)
    try:
        records = json.loads(text)["data"]
        said = {(r["image_id"], r["question"].lower()): tuple(r["answers"]) for r in records}
        if not all(isinstance(answer, str) for answers in said.values() for answer in answers):
            raise ValueError("an answer is no text")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise DataError(f"{path}: expected TextVQA's 'data' with image_id, question and answers.") from None
    questions, people = [], []
    asked_in = folder / ASKED_IN
    for record, line in enumerate(read_json_lines(asked_in, ("question_id", "image", "text"))):
        first_line = line["text"].split("\n")[0].strip()
        answers = said.get((line["question_id"], first_line.lower()))
        if answers is None or len(answers) != PEOPLE:
            raise unlabelled(asked_in, line["question_id"])
        image = image_in(folder / "train_images", line["image"], asked_in)
        questions.append(
            Question(
                id=line["question_id"], image=image, text=line["text"], answer="", type="all", record=record
            )
        )
        people.append(answers)
    return questions, people


def normalised(text: str) -> str:
    """An answer in the spelling in which the challenge compares."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    original = text
    for mark in _PUNCTUATION:
        at_a_space = f"{mark} " in original or f" {mark}" in original
        text = text.replace(mark, "" if at_a_space else " ")
    text = _POINT.sub("", text)
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_WITH_APOSTROPHE.get(word, word) for word in words if word not in _ARTICLES)


def answer_score(answer: str, people: Sequence[str]) -> float:
    """Between 0 and 1: for each person, how many of the others said the same, three being enough."""
    own, others = normalised(answer), [normalised(text) for text in people]
    if own not in others:
        return 0.0
    agreeing = others.count(own)
    without_one = [agreeing - (text == own) for text in others]
    return sum(min(1.0, count / 3) for count in without_one) / len(others)


def score_textvqa(people: Sequence[Sequence[str]], answers: Sequence[str | None]) -> dict[str, Any]:
    """`score` is the mean over the questions, in per cent; no answer, None, has 0."""
    scores = [0.0 if a is None else answer_score(a, said) for a, said in zip(answers, people, strict=True)]
    return {"score": 100 * sum(scores) / len(scores), "questions": len(scores)}
