"""Answers that stand apart from their questions: found by what is asked about which picture, or by id."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tinyllava_edge.errors import DataError

from .question import Question
from .question_files import read_question_file
from .records import listed, read_record

_BY_ID = ("vqav2", "gqa", "scienceqa", "mmmu")  # sets whose ids are one for each question
_POPE_SPLIT = re.compile(r"coco_pope_(\w+)")


@dataclass(kw_only=True)
class References:
    """What is expected, by each key that a question may be found by.

    Attributes:
        files: it is from, for errors.
        rule: name of the rule of such files; "" where they do not say.
    """

    files: Sequence[Path]
    rule: str = ""
    _known: dict[tuple[str, ...], tuple[tuple[str, ...], str]] = field(default_factory=dict)
    _unclear: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, question: Question, *, by_id: bool) -> None:
        """Take what a record expects; two that differ under one key make it worthless.

        Of TextVQA's, as for its own scorer, the last counts.
        """
        for key in ((str(question.id),),) if by_id else _keys(question):
            said = (question.answers, question.type)
            if self.rule == "textvqa":
                self._known[key] = said
            elif self._known.setdefault(key, said)[0] != question.answers:
                self._unclear.add(key)

    def answered(self, question: Question) -> Question:
        """The question with its answers, and the type that they are of where it has none itself.

        Raises:
            DataError: there are none, or several that differ.
        """
        id_ = str(question.id)
        for key in (*_keys(question), (id_, question.asked), (id_,)):
            if key in self._known and key not in self._unclear:
                answers, type_ = self._known[key]
                own = question.type != "all"
                return replace(question, answers=answers, type=question.type if own else type_)
        names = ", ".join(path.name for path in self.files[:3]) + ", ..." * bool(self.files[3:])
        keys = {*_keys(question), (id_, question.asked), (id_,)}
        what = "has answers that differ" if keys & self._unclear else "is not"
        raise DataError(f"question {question.id} {what} in the annotation files: {names}.")


def _keys(question: Question) -> list[tuple[str, ...]]:
    stem = Path(question.picture).stem
    return [(question.type, stem, question.asked), (stem, question.asked)]


def read_references(paths: Sequence[Path]) -> References:
    """Read answers from files: a public set's annotations, or records as of questions with answers.

    Raises:
        DataError: a file is of another form, or records are; the first of them are named.
    """
    found = References(files=paths)
    faults: list[str] = []
    for path in paths:
        file = read_question_file(path)
        found.rule = found.rule or file.rule
        split = _POPE_SPLIT.fullmatch(path.stem)
        for index, raw in enumerate(file.records):
            if not isinstance(raw, DataError):
                nameless = {} if raw.keys() & {"conversations", "question", "text"} else {"question": ""}
                raw = {**raw, **nameless, **({"type": split[1]} if split else {})}
            record = read_record(raw, index, Path())
            if isinstance(record, DataError):
                faults.append(f"{path}: record {index}: {record}")
                continue
            for question in (each for each in record if each.answers):
                found.add(question, by_id=file.rule in _BY_ID or (question.has_id and not question.text))
    if faults:
        raise DataError(listed(faults))
    return found
