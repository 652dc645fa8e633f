"""Every answer of an evaluation: asked once, on the disk as it comes, in the form of LLaVA's answer files.

Source of the form: docs/sources/measuring.md#question-files. An answer is known again by its question's id,
text, type and expected answer and by its picture's content: only what was mended is asked again. An id
that is only a place in a list does not count: records that are left out move it.
"""

import json
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllava_edge.append_jsonl import Line, read_lines
from tinyllava_edge.errors import ContextOverflowError, DataError, ImageError, PromptError, ResumeError
from tinyllava_edge.picture_check import picture_error
from tinyllava_edge.record_check import OTHER, BadRecord
from tinyllava_edge.user_files import read_user_text
from tinyllava_edge.verified_files import sha256_of_file

from .question import Question, Shown
from .scores import ask, credit
from .tables import TablePicture

if TYPE_CHECKING:
    from tinyllava_edge.runtimes.model import Model

    from .cell import Cell

TOO_LONG = "too long"
Way = tuple[str, bool]  # the cell's name, and whether it was blind


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one question.

    Attributes:
        text: of the answer, without spaces around it; "" where it failed.
        picture_sha256: of the file that was shown; None where there is none.
        fault: kind and reason of a failure.
    """

    text: str
    picture_sha256: str | None
    fault: tuple[str, str] | None = None


Answers = dict[Way, dict[int, Answer]]  # by the question's position


@lru_cache(maxsize=64)
def _sha256(path: Path, *state: int) -> str:
    return sha256_of_file(path)


def picture_sha256(question: Question) -> str | None:
    """Of the file of a question's picture; None where there is none, or it cannot be read."""
    if question.image is None:
        return None
    if isinstance(question.image, TablePicture):
        return question.image.sha256
    try:
        status = question.image.stat()
        return _sha256(question.image, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    except (OSError, ValueError):
        return None


def asking_order(questions: Sequence[Question]) -> list[int]:
    """Positions with those about one picture together, so that it is encoded once."""
    first: dict[Shown | None, int] = {None: -1}
    for position, question in enumerate(questions):
        first.setdefault(question.image, position)
    return sorted(range(len(questions)), key=lambda position: first[questions[position].image])


def ask_missing(
    cell: "Cell",
    questions: Sequence[Question],
    answers: Answers,
    max_tokens: int,
    on_answer: Callable[[Way, int, Answer], None],
) -> None:
    """Ask one cell what `answers` lacks of it, and put it there; a question that fails ends nothing.

    Raises:
        BackendError: the runtime failed, which is no question's fault.
    """
    from tinyllava_edge.runtimes.model import open_bundle

    order = asking_order(questions)
    ways = [way for way in answers if way[0] == cell.name and len(answers[way]) < len(questions)]
    if not ways:
        return
    with open_bundle(cell.bundle, runtime=cell.runtime, **vars(cell.options)) as model:
        for way in ways:
            for position in order:
                if position not in answers[way]:
                    answer = _ask(model, questions[position], way[1], max_tokens)
                    answers[way][position] = answer
                    on_answer(way, position, answer)


def _ask(model: "Model", question: Question, blind: bool, max_tokens: int) -> Answer:
    sha256 = picture_sha256(question)
    try:
        text = ask(model, question, blind=blind, max_tokens=max_tokens)
        return Answer(text=text, picture_sha256=sha256)
    except ImageError as error:
        shown = question.image
        found = picture_error(shown if isinstance(shown, Path) else str(shown), error)
        fault = (found.kind, str(found))
    except ContextOverflowError as error:
        fault = (TOO_LONG, str(error))
    except PromptError as error:
        fault = (OTHER, str(error))
    return Answer(text="", picture_sha256=sha256, fault=fault)


def answer_files(path: Path, ways: Iterable[Way]) -> dict[Way, Path]:
    """A file for each way: scorers take one model's answers. The first has the name that was given."""
    files: dict[Way, Path] = {}
    for name, blind in ways:
        words = re.sub(r" *\+ *", "+", name).replace(" ", "-") + (".blind" if blind else "")
        files[name, blind] = path.with_name(f"{path.stem}.{words}{path.suffix}") if files else path
    return files


def answer_line(
    way: Way, position: int, question: Question, answer: Answer, made_with: Mapping[str, Any]
) -> dict[str, Any]:
    """A line with the keys of LLaVA's answer files, what was expected, and whether it was answered so.

    Args:
        way: that was asked.
        position: of the question.
        question: that was asked.
        answer: to it.
        made_with: what answers follow from besides: the bundle, and the limit of tokens.
    """
    share = credit(question, None if answer.fault else answer.text) if question.answers else None
    right = bool(share) if share in (0.0, 1.0) else share  # where people disagree, how far
    return {
        "question_id": question.id,
        "prompt": question.prompt or question.text,
        "text": answer.text,
        "answer_id": f"{way[0]}{' blind' if way[1] else ''} {position}",
        "model_id": way[0],
        "metadata": {
            "type": question.type,
            "expected": question.expected,
            "rule": question.rule,
            "right": right,
            "blind": way[1],
            "made_with": made_with,
            "picture_sha256": answer.picture_sha256,
            "failed": None
            if answer.fault is None
            else dict(zip(("kind", "reason"), answer.fault, strict=True)),
        },
    }


def answers_mark(path: Path) -> str:
    """Whether every line of a file is an answer that `eval` wrote: see `atomic_files.Mark`."""
    lines = read_lines(path)  # without a last one that was cut short: a user's file may hold no other
    ours = (lines or not path.stat().st_size) and all("blind" in line.get("metadata", ()) for line in lines)
    return "" if ours else "holds other lines than answers of eval"


def read_answers(path: Path) -> list[Line]:
    """The lines of a file that a user names as answers of `eval`, each with its `metadata`.

    Raises:
        DataError: it cannot be read, is empty, or holds something else.
    """
    read_user_text(path, error=DataError)  # that it is there, a file, and text
    try:
        lines = read_lines(path)
    except ResumeError:
        raise other_lines(path) from None
    if not lines:
        raise DataError(f"{path}: holds no line that is an answer of eval. Give a file of eval --answers.")
    if not all(isinstance(line.get("metadata"), dict) for line in lines):
        raise other_lines(path)
    return lines


def other_lines(path: Path, what: str = "") -> DataError:
    """What says that a file holds something else, and what."""
    found = f" ({what})" if what else ""
    return DataError(f"{path}: holds other lines than answers of eval{found}. Give a file of eval --answers.")


def known_answers(
    lines: Iterable[tuple[Path, Mapping[str, Any]]],
    questions: Sequence[Question],
    ways: Iterable[Way],
    *,
    failed: bool = False,
) -> tuple[Answers, int]:
    """What earlier runs have answered of these questions, and how many answers are of none of these ways.

    Args:
        lines: that they wrote, each with its file.
        questions: that are asked now.
        ways: likewise.
        failed: take what failed, too, which else is asked again.

    Raises:
        ResumeError: others were answered, or a file holds something else.
    """
    found: dict[str, deque[Answer]] = defaultdict(deque)
    asked = {_key(*_subject(question)) for question in questions}
    others, path = 0, Path()
    for path, line in lines:
        try:
            about, text, subject = line["metadata"], line["text"], (line["question_id"], line["prompt"])
            sha256, way, fault = about["picture_sha256"], (line["model_id"], about["blind"]), about["failed"]
            if _key(*subject) not in asked:
                subject = (None, subject[1])
            key = _key(*way, *subject, about["type"], about["expected"], sha256)
            if fault is None or failed:
                others += _key(*subject) not in asked
                kept = None if fault is None else (str(fault["kind"]), str(fault["reason"]))
                if not isinstance(text, str):
                    raise TypeError(text)
                found[key].append(Answer(text=text, picture_sha256=sha256, fault=kept))
        except (KeyError, TypeError):
            raise ResumeError(f"{path}: holds other lines than answers of eval. Remove them.") from None
    if others:
        raise ResumeError(
            f"{path}: was begun with other questions: {others} of those it has answers to are not asked "
            f"now. Give the same again{'' if failed else ', or --force to begin anew'}."
        )
    answers: Answers = {way: {} for way in ways}
    for position, question in enumerate(questions if found else ()):
        shown = (*_subject(question), question.type, question.expected)
        sha256 = picture_sha256(question)
        for way, its in answers.items():
            if known := found.get(_key(*way, *shown, sha256)):
                its[position] = known.popleft()
    return answers, sum(map(len, found.values()))


def _subject(question: Question) -> tuple[str | int | None, str]:
    return question.id if question.has_id else None, question.prompt or question.text


def _key(*facts: Any) -> str:
    return json.dumps(facts)


def failures(file: Path, questions: Sequence[Question], answers: Answers) -> list[BadRecord]:
    """What failed, in the order of the file; each question once, however often it was asked."""
    found: dict[int, tuple[str, str]] = {}
    for its in answers.values():
        for position, answer in its.items():
            if answer.fault is not None:
                found.setdefault(position, answer.fault)
    return [
        BadRecord(
            file=str(file),
            index=questions[position].record,
            id=str(questions[position].id),
            kind=kind,
            reason=reason,
        )
        for position, (kind, reason) in sorted(found.items())
    ]
