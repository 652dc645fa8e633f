"""MMMU: college questions, most of several choices, some open (Yue et al. 2024, arXiv 2311.16502).

Read as the set's own tool and upstream's script read an answer: docs/sources/measuring.md#scores-of-answers.
Where those draw a choice at random, an answer has the share that the draw wins on average.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from .question import Question

_ENDS = (",", ".", "!", "?", ";", ":", "'")
_LONG = 5  # words; only a longer answer may quote a choice
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # with commas
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_PLACES = 2  # that numbers are compared to
Value = str | float


def category_of(id_: str) -> str:
    """The subject in an id: `validation_Art_Theory_7` is of Art_Theory."""
    return "_".join(id_.split("_")[1:-1])


def read_choice(text: str, options: Mapping[str, str]) -> str:
    """The letter: the last one in brackets, else alone, else the last choice that a long answer quotes."""
    for mark in _ENDS:
        text = text.strip(mark)
    text = f" {text} "
    for form in ("({})", " {} "):
        places = {letter: text.rfind(form.format(letter)) for letter in options}
        if max(places.values()) >= 0:
            return max(places, key=places.__getitem__)
    if len(text.split()) > _LONG:
        places = {letter: text.lower().rfind(option.lower()) for letter, option in options.items()}
        if max(places.values()) >= 0:
            return max(places, key=places.__getitem__)
    return ""


def read_open(text: str) -> set[Value]:
    """What an open answer may say: the end of each line that announces one, and the numbers in those."""
    whole = text.strip().strip(".").lower()
    lines = whole.split("\n")
    ends = [_announced(line, is_last=line_no == len(lines) - 1) for line_no, line in enumerate(lines)]
    said = [end for end in ends if end and end not in _ENDS] or [whole]
    numbers = [number for end in said for pattern in _NUMBERS for number in pattern.findall(end)]
    return {value for each in (*said, *numbers) for value in _compared(each)}


def _announced(line: str, *, is_last: bool) -> str:
    """The shortest rest of a line behind a word that announces an answer."""
    shortest = ""
    for indicator in (*_INDICATORS, *("=",) * is_last):
        if indicator in line:
            rest = line.split(indicator)[-1].strip()
            if not shortest or len(rest) < len(shortest):
                shortest = rest
    return shortest


def _compared(text: str) -> list[Value]:
    """A number to two places; a text in lower case, a single letter only at the end of a word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), _PLACES)]
    except ValueError:
        low = text.lower()
        return [f" {low}", f"{low} "] if len(low) == 1 else [low]


def credit_mmmu(question: Question, answer: str) -> float:
    """1 or 0; of a choice that the tool would draw at random, one over the number of choices.

    A question about several pictures is not asked by upstream, which draws there, too.
    """
    if question.options:
        letter = read_choice(answer, question.options) if question.image is not None else ""
        return float(letter in question.answers) if letter else 1 / len(question.options)
    if question.image is None:
        return 0.0
    expected = [value for each in question.answers for value in _compared(each)]
    said = read_open(answer)
    texts = [value for value in expected if isinstance(value, str)]
    return float(
        any(
            value in expected if isinstance(value, float) else any(t in value for t in texts)
            for value in said
        )
    )


def score_mmmu(questions: Sequence[Question], answers: Sequence[str | None]) -> dict[str, Any]:
    """`score` is the accuracy in per cent, `subjects` has each subject's; `guessed` counts the draws."""
    subjects: dict[str, list[float]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        subjects[question.type].append(0.0 if answer is None else credit_mmmu(question, answer))
    credits = [credit for its in subjects.values() for credit in its]
    return {
        "score": 100 * sum(credits) / len(credits),
        "subjects": {name: 100 * sum(its) / len(its) for name, its in subjects.items()},
        "guessed": sum(0 < credit < 1 for credit in credits),
    }
