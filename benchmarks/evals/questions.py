"""Files of questions -> questions, with their expected answers and their rule, or why a record has none."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tinyllava_edge.errors import DataError

from .question import Question as Question
from .question import Record as Record
from .question_files import read_question_file
from .records import LISTED, listed, read_record, unread_picture
from .references import References, read_references
from .rules import Rule, rule_named, rule_of


def read_questions(path: Path, images: Path) -> list[Question]:
    """The questions of a file that can all be scored: records good, answers given, pictures there.

    Raises:
        DataError: the file is of another form, or records are, or pictures are missing; they are listed.
    """
    records = read_records(path, images)
    bad = [
        f"record {index}: {record}" for index, record in enumerate(records) if isinstance(record, DataError)
    ]
    questions = [question for record in records if isinstance(record, tuple) for question in record]
    bad += [f"record {q.record}: no answer, so nothing to score" for q in questions if not q.answers]
    if bad:
        raise DataError(f"{path}: {listed(bad)}")
    check_pictures(questions)
    return questions


def read_records(
    path: Path, images: Path, *, references: Sequence[Path] = (), rule: str = ""
) -> list[Record]:
    """Read the questions of a file in any form that `question_files` knows.

    A record is `{image, question, answer, type}`, or a LLaVA record with `conversations`, of which each pair
    of messages is a question of its own. `type`, `image` and the answer may be missing; an answer is a text,
    a number, or a list of them. `text`, `answers`, `label`, `category`, `question_id`, `images`, `picture`
    and `messages` are other names.

    Args:
        path: the file.
        images: folder that the image paths are relative to.
        references: files with the answers; they take the place of those in `path`.
        rule: that says what is right; told by the references or the questions where it is "".

    Raises:
        DataError: a file is of another form.
        UsageError: there is no such rule.
    """
    known = read_references(references) if references else None
    found = read_question_file(path)
    if found.rule == "scienceqa":  # its texts and pictures make questions only as LLaVA puts them together
        raise DataError(f"{path}: ScienceQA's problems are references; ask LLaVA's llava_test_CQM-A.json.")
    is_blind = found.rule == "mmmu"  # which names none of several pictures
    records = [
        (None if is_blind else unread_picture(raw)) or read_record(raw, index, images)
        for index, raw in enumerate(found.records)
    ]
    if known is not None:
        records = [_answered(record, known) for record in records]
    named = rule or (known.rule if known else "") or found.rule or rule_of(records)
    return [_ruled(record, rule_named(named)) for record in records]


def _answered(record: Record, references: References) -> Record:
    """A record with the references' answers, which judge it."""
    if isinstance(record, DataError):
        return record
    try:
        return tuple(references.answered(question) for question in record)
    except DataError as error:
        return error


def _ruled(record: Record, rule: Rule) -> Record:
    """A record as a rule asks and scores it."""
    if isinstance(record, DataError):
        return record
    ruled = []
    for question in record:
        if rule.name == "mmbench" and not (question.options and str(question.id).isdecimal()):
            return DataError("it has no options by letter, or an id that is no whole number (rule mmbench).")
        try:
            answers = rule.read(question.answers) if question.answers else ()
        except ValueError as error:
            return DataError(f"{error} (rule {rule.name}).")
        below = "" if rule.asked_with in question.text else f"\n{rule.asked_with}"
        prompt = question.prompt and question.prompt + below
        ruled.append(
            replace(question, answers=answers, rule=rule.name, text=question.text + below, prompt=prompt)
        )
    return tuple(ruled)


def check_pictures(questions: Sequence[Question], *, some: bool = False) -> None:
    """Refuse questions whose pictures are not there.

    Args:
        questions: what is asked.
        some: whether one that is there is enough.

    Raises:
        DataError: the message has the first of them.
    """
    pictures = {str(question.image) for question in questions if isinstance(question.image, Path)}
    missing = sorted(path for path in pictures if not os.path.isfile(path))
    if missing and not (some and len(missing) < len(pictures)):
        shown = ", ".join(missing[:LISTED])
        raise DataError(
            f"{len(missing)} pictures are missing: {shown}{', ...' if missing[LISTED:] else ''}. Is it the "
            "right folder?"
        )
