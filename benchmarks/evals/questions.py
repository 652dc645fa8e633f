"""Questions with short answers: LLaVA conversations or a plain list, told apart by their keys.

Source of the keys: docs/sources/measuring.md#question-files.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.errors import DataError
from tinyllava_edge.user_files import read_user_text

_LISTED = 5  # missing pictures that an error names
# What the files of the field call the same thing; POPE's, for one, are of the second kind.
_QUESTION, _ANSWER = ("question", "text"), ("answer", "label")
_TYPE, _ID = ("type", "category"), ("id", "question_id")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question, its expected answer, and the picture it is about."""

    id: str
    image: Path | None
    text: str
    answer: str
    type: str


def read_questions(path: Path, images: Path) -> list[Question]:
    """Read a JSON list, or one record a line.

    A record is `{image, question, answer, type}`, or a LLaVA record with `conversations`, of which each pair
    of messages is a question of its own. `type` and `image` may be missing. `text`, `label`, `category` and
    `question_id` are other names of `question`, `answer`, `type` and `id`.

    Args:
        path: the JSON file.
        images: folder that the image paths are relative to.

    Raises:
        DataError: the file is of another form, or pictures are missing; the message lists them.
    """
    records = _read_records(path)
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a JSON list of records, found {type(records).__name__}.")
    if not records:
        raise DataError(f"{path}: the list is empty; expected at least one record.")
    questions = [
        question
        for index, record in enumerate(records)
        for question in _questions(record, f"{path}: record {index}", images)
    ]
    check_pictures(questions)
    return questions


def check_pictures(questions: Sequence[Question]) -> None:
    """Refuse questions whose pictures are not there.

    Raises:
        DataError: the message has the first of them.
    """
    missing = sorted({str(q.image) for q in questions if q.image is not None and not q.image.is_file()})
    if missing:
        shown = ", ".join(missing[:_LISTED])
        raise DataError(
            f"{len(missing)} pictures are missing: {shown}{', ...' if missing[_LISTED:] else ''}."
        )


def read_json_lines(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Read the objects of a public set's file, one a line.

    Raises:
        DataError: the file cannot be read, a line is no object, or lacks one of `keys`.
    """
    found = _read_records(path)
    records = found if isinstance(found, list) else [found]
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or not set(keys) <= set(record):
            raise DataError(f"{path}: line {number}: expected an object with {', '.join(keys)}.")
    if not records:
        raise DataError(f"{path}: holds no questions.")
    return records


def unlabelled(path: Path, question_id: Any) -> DataError:
    """The error of a question that no annotation is of."""
    return DataError(f"{path}: question {question_id} is not in the annotation files beside it.")


def _read_records(path: Path) -> Any:
    text = read_user_text(path, error=DataError)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        fault = error
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        raise DataError(f"{path}: neither JSON nor one record a line ({fault}).") from None


def _first(record: Mapping[str, Any], names: Sequence[str], default: Any = None) -> Any:
    return next((record[name] for name in names if name in record), default)


def _questions(record: Any, where: str, images: Path) -> list[Question]:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: expected an object, found {type(record).__name__}.")
    if "conversations" in record:
        pairs = _pairs(record["conversations"], where)
    else:
        pairs = [(_first(record, _QUESTION), _first(record, _ANSWER))]
        if not all(isinstance(text, str) for text in pairs[0]):
            raise DataError(f"{where}: expected 'conversations', or 'question' and 'answer' as text.")
    image = None if record.get("image") is None else image_in(images, record["image"], where)
    return [
        Question(
            id=str(_first(record, _ID, where)),
            image=image,
            text=question.replace(IMAGE_MARKER, "").strip(),
            answer=answer,
            type=str(_first(record, _TYPE, "all")),
        )
        for question, answer in pairs
    ]


def _pairs(messages: Any, where: str) -> list[tuple[str, str]]:
    try:
        texts = {"human": [], "gpt": []}  # type: dict[str, list[str]]
        for message in messages:
            texts[message["from"]].append(message["value"])
        return list(zip(texts["human"], texts["gpt"], strict=True))
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{where}: conversations are not pairs of messages from human and gpt.") from None


def image_in(folder: Path, name: Any, where: object) -> Path:
    """The path of a record's picture.

    Args:
        folder: that the name is relative to.
        name: as the record has it.
        where: the record is, for the error.

    Raises:
        DataError: the name leaves the folder.
    """
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{where}: image is {name!r}; expected a path inside {folder}.")
    return folder / name
