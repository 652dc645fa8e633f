"""Which of several choices an answer names: as ScienceQA's scorer, and MMBench's, read it."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from .question import Question

_SCIENCEQA = "ABCDE"
_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
_MARKS = re.compile(r"[.()\[\],:;!*#{}]")
_VERBOSE = re.compile(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**")
_LAST_WORDS = 5  # a letter counts among these
_REFUSALS = (
    *("Sorry, I can't help with images of people yet.", "I can't process this file."),
    *("I'm sorry, but without the image provided", "Cannot determine the answer"),
)
_CIRCULAR = 1_000_000  # rows of one question, its choices rotated, are so far apart


def read_scienceqa(text: str) -> str:
    """The letter as upstream's `eval_science_qa.py` reads it; "" where it reads none.

    A letter alone, a letter with a full stop and a space behind it, or exactly one "The answer is X.".
    """
    if text in tuple(_SCIENCEQA):
        return text
    if text[:1] in tuple(_SCIENCEQA) and text[1:3] == ". ":
        return text[0]
    found = _ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else ""


def score_scienceqa(questions: Sequence[Question], answers: Sequence[str | None]) -> dict[str, Any]:
    """`score` is the accuracy in per cent, `img` that of questions with a picture, as upstream's tables."""
    hits = [
        a is not None and bool(read_scienceqa(a)) and read_scienceqa(a) == q.answers[0]
        for q, a in zip(questions, answers, strict=True)
    ]
    img = [hit for question, hit in zip(questions, hits, strict=True) if question.image is not None]
    unparsed = sum(answer is not None and not read_scienceqa(answer) for answer in answers)
    shown = {"img": 100 * sum(img) / len(img)} if img else {}
    return {"score": 100 * sum(hits) / len(hits), **shown, "unparsed": unparsed}


def read_choice(text: str, options: Mapping[str, str]) -> str:
    """The letter as VLMEvalKit reads it without a judge; "" where it reads none.

    The only letter, among the last words; else "answer is X"; else the only choice whose text is there.
    """
    if any(refusal in text for refusal in _REFUSALS):
        return "Z"
    words = _MARKS.sub(" ", text).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - _LAST_WORDS:
        return named[0]
    if not named and "Z" in words:
        return "Z"
    verbose = _VERBOSE.search(text)
    if verbose and verbose[1].upper() in options:
        return verbose[1].upper()
    if len(text) > 2 * sum(map(len, options.values())):
        return ""
    quoted = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return quoted[0] if len(quoted) == 1 else ""


def score_mmbench(questions: Sequence[Question], answers: Sequence[str | None]) -> dict[str, Any]:
    """`score` is the accuracy in per cent; a question whose choices are rotated over rows is right in all."""
    rows: dict[int, list[bool]] = defaultdict(list)
    unparsed = 0
    for question, answer in zip(questions, answers, strict=True):
        letter = "" if answer is None else read_choice(answer, question.options)
        unparsed += answer is not None and not letter
        rows[int(question.id) % _CIRCULAR].append(letter == question.answers[0])
    hits = [all(each) for each in rows.values()]
    kind = "circular" if len(hits) < len(questions) else "vanilla"
    return {"score": 100 * sum(hits) / len(hits), "kind": kind, "questions": len(hits), "unparsed": unparsed}
