"""When an answer is right: one rule for each kind of question set, each as the set's own scorer has it.

Sources: docs/sources/measuring.md#scores-of-answers. `tests/benchmarks/evals/official/` holds what those
scorers said of made-up answers.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllava_edge.errors import DataError, UsageError

from .choices import read_choice, read_scienceqa, score_mmbench, score_scienceqa
from .mme import parse_answer as parse_mme
from .mme import score_mme
from .mmmu import credit_mmmu, score_mmmu
from .pope import parse_answer as parse_pope
from .pope import score_pope
from .question import Question
from .vqa import PEOPLE, credit_textvqa, credit_vqav2

BY_LETTER = "Answer with the option's letter from the given choices directly."
_YES_NO = re.compile(r"(?i)yes|no")
_LETTER = re.compile(r"(?:.*The answer is )?([A-Z])(?:\.(?: BECAUSE:.*)?)?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a kind of question is asked and scored.

    Attributes:
        name: as `--rule` has it.
        says: what is right, for people.
        credit: of an answer, between 0 and 1.
        figures: of all questions and answers, None where nothing could be answered: `score` in the set's own
            unit, and what it is made of.
        read: the references in the form that `credit` takes; ValueError says what was expected.
        asked_with: line below every question that does not have it.
    """

    name: str
    says: str
    credit: Callable[[Question, str], float]
    figures: Callable[[Sequence[Question], Sequence[str | None]], dict[str, Any]]
    read: Callable[[Sequence[str]], tuple[str, ...]] = tuple
    asked_with: str = ""


def folded(text: str) -> str:
    """An answer in the spelling in which two are compared: no case, outer spaces and last full stop."""
    return text.strip().removesuffix(".").casefold()


def gqa_spelling(text: str) -> str:
    """A prediction as upstream's converter hands it to GQA's scorer, which compares texts."""
    return text.rstrip(".").lower()


def _any_of(spelled: Callable[[str], str], own: Callable[[str], str]) -> Callable[[Question, str], float]:
    return lambda question, answer: float(spelled(answer) in map(own, question.answers))


def _mean(credit: Callable[[Question, str], float]) -> Callable[..., dict[str, Any]]:
    def figures(questions: Sequence[Question], answers: Sequence[str | None]) -> dict[str, Any]:
        credits = [0.0 if a is None else credit(q, a) for q, a in zip(questions, answers, strict=True)]
        return {"score": 100 * sum(credits) / len(credits)}

    return figures


def _people(answers: Sequence[str]) -> tuple[str, ...]:
    if len(answers) != PEOPLE:
        raise ValueError(f"answers: {len(answers)}, expected those of {PEOPLE} people")
    return tuple(answers)


def _yes_or_no(answers: Sequence[str]) -> tuple[str, ...]:
    if len(answers) != 1 or not _YES_NO.fullmatch(answers[0]):
        raise ValueError(f"answer is {', '.join(answers)!r:.80}, expected yes or no")
    return (answers[0].lower(),)


def _letter(answers: Sequence[str]) -> tuple[str, ...]:
    said = answers[0].strip() if len(answers) == 1 else ""
    found = _LETTER.fullmatch(said.upper() if len(said) == 1 else said)
    if found is None:
        raise ValueError(f"answer is {', '.join(answers)!r:.80}, expected a choice's letter")
    return (found[1],)


_exact = _any_of(folded, folded)
_gqa = _any_of(gqa_spelling, str)


def _textvqa(question: Question, answer: str) -> float:
    return credit_textvqa(answer, question.answers)


def _vqav2(question: Question, answer: str) -> float:
    return credit_vqav2(answer, question.answers)


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            name="exact",
            says="equal to an expected answer but for case, outer spaces and a last full stop",
            credit=_exact,
            figures=_mean(_exact),
        ),
        Rule(
            name="scienceqa",
            says="the letter: alone, before '. ', or in one 'The answer is X.'",
            credit=lambda question, answer: float(read_scienceqa(answer) == question.answers[0]),
            figures=score_scienceqa,
            read=_letter,
            asked_with=BY_LETTER,
        ),
        Rule(
            name="mmbench",
            says="the letter, or the one choice that is quoted; all rows of a rotated question",
            credit=lambda q, answer: float(read_choice(answer, q.options) == q.answers[0]),
            figures=score_mmbench,
            read=_letter,
            asked_with=BY_LETTER,
        ),
        Rule(
            name="pope",
            says="no where the first sentence has no or not, else yes",
            credit=lambda question, answer: float(parse_pope(answer)[0] == question.answers[0]),
            figures=score_pope,
            read=_yes_or_no,
        ),
        Rule(
            name="mme",
            says="yes or no in the first four characters; per category accuracy and accuracy+, in per cent",
            credit=lambda question, answer: float(parse_mme(answer) == question.answers[0]),
            figures=score_mme,
            read=_yes_or_no,
        ),
        Rule(
            name="mmmu",
            says="the last letter in brackets or alone, or the last choice quoted; one that names "
            "none has one over the number of choices; an open answer that holds an expected one",
            credit=credit_mmmu,
            figures=score_mmmu,
        ),
        Rule(
            name="textvqa",
            says="a third for each of ten people who said it, in TextVQA's spelling",
            credit=_textvqa,
            figures=_mean(_textvqa),
            read=_people,
        ),
        Rule(
            name="vqav2",
            says="a third for each of ten people who said it, in VQAv2's spelling",
            credit=_vqav2,
            figures=_mean(_vqav2),
            read=_people,
        ),
        Rule(
            name="gqa",
            says="equal to the answer but for case and last full stops",
            credit=_gqa,
            figures=_mean(_gqa),
        ),
    )
}


def rule_named(name: str) -> Rule:
    """A rule.

    Raises:
        UsageError: there is no such rule.
    """
    if name not in RULES:
        raise UsageError(f"--rule {name!r} is not known. Known: {', '.join(RULES)}.")
    return RULES[name]


def rule_of(records: Sequence[tuple[Question, ...] | DataError]) -> str:
    """The rule of a plain file, told by all its answers; `exact` where nothing says another."""
    questions = [q for record in records if isinstance(record, tuple) for q in record if q.answers]
    if questions and all(q.labelled and _YES_NO.fullmatch(q.answers[0]) for q in questions):
        return "pope"
    answers = [q.answers[0] for q in questions]
    if answers and all("The answer is " in a and _LETTER.fullmatch(a.strip()) for a in answers):
        return "scienceqa"
    return "exact"
