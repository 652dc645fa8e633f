"""Questions with short answers: LLaVA conversations or a plain list, told apart by their keys.

Source of the keys: docs/sources/measuring.md#question-files.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """One question, its expected answer, and the picture it is about.

    Attributes:
        id: as its file has it, a number or a text; where it has none, the record's place.
        image: of the picture.
        text: what is asked.
        answer: the expected one.
        type: scored by itself.
        prompt: the text as upstream's answer files repeat it, where that is not `text`.
        record: place in the file, from 0.
        has_id: of its own, in the file.
    """

    id: str | int
    image: Path | None
    text: str
    answer: str
    type: str
    prompt: str = field(default="", compare=False)
    record: int = field(default=0, compare=False)
    has_id: bool = field(default=True, compare=False)


Record = tuple[Question, ...] | DataError  # of a file: its questions, or why there are none


def read_questions(path: Path, images: Path) -> list[Question]:
    """The questions of a file, all of whose records are good and pictures there: see `read_records`.

    Raises:
        DataError: the file is of another form, or a record is, or pictures are missing; they are listed.
    """
    questions: list[Question] = []
    for index, record in enumerate(read_records(path, images)):
        if isinstance(record, DataError):
            raise DataError(f"{path}: record {index}: {record}")
        questions += record
    check_pictures(questions)
    return questions


def read_records(path: Path, images: Path) -> list[Record]:
    """Read a JSON list, or one record a line.

    A record is `{image, question, answer, type}`, or a LLaVA record with `conversations`, of which each pair
    of messages is a question of its own. `type` and `image` may be missing. `text`, `label`, `category` and
    `question_id` are other names of `question`, `answer`, `type` and `id`.

    Args:
        path: the JSON file.
        images: folder that the image paths are relative to.

    Raises:
        DataError: the file is of another form.
    """
    raw = _read_json(path)
    if not isinstance(raw, list):
        raise DataError(f"{path}: expected a JSON list of records, found {type(raw).__name__}.")
    if not raw:
        raise DataError(f"{path}: the list is empty; expected at least one record.")
    records: list[Record] = []
    for index, record in enumerate(raw):
        try:
            records.append(tuple(_questions(record, index, images)))
        except DataError as error:
            records.append(error)
    return records


def check_pictures(questions: Sequence[Question], *, some: bool = False) -> None:
    """Refuse questions whose pictures are not there.

    Args:
        questions: what is asked.
        some: whether one that is there is enough.

    Raises:
        DataError: the message has the first of them.
    """
    pictures = {str(question.image) for question in questions if question.image is not None}
    missing = sorted(path for path in pictures if not os.path.isfile(path))
    if missing and not (some and len(missing) < len(pictures)):
        shown = ", ".join(missing[:_LISTED])
        raise DataError(
            f"{len(missing)} pictures are missing: {shown}{', ...' if missing[_LISTED:] else ''}. Is it the "
            "right folder?"
        )


def read_json_lines(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Read the objects of a public set's file, one a line.

    Raises:
        DataError: the file cannot be read, a line is no object, or lacks the text of one of `keys`.
    """
    found = _read_json(path)
    records = found if isinstance(found, list) else [found]
    for number, record in enumerate(records, 1):
        kinds = {key: (str, int) if key == "question_id" else str for key in keys}
        if not isinstance(record, dict) or not all(isinstance(record.get(k), t) for k, t in kinds.items()):
            raise DataError(f"{path}: line {number}: expected an object with {', '.join(keys)} as text.")
    if not records:
        raise DataError(f"{path}: holds no questions.")
    return records


def unlabelled(path: Path, question_id: Any) -> DataError:
    """The error of a question that no annotation is of."""
    return DataError(f"{path}: question {question_id} is not in the annotation files beside it.")


def _read_json(path: Path) -> Any:
    text = read_user_text(path, error=DataError)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        fault = error
    try:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError):
        raise DataError(f"{path}: neither JSON nor one record a line ({fault}).") from None


def _first(record: Mapping[str, Any], names: Sequence[str], default: Any = None) -> Any:
    return next((record[name] for name in names if name in record), default)


def _questions(record: Any, index: int, images: Path) -> list[Question]:
    if not isinstance(record, Mapping):
        raise DataError(f"expected an object, found {type(record).__name__}.")
    is_llava = "conversations" in record
    pairs = (
        _pairs(record["conversations"])
        if is_llava
        else [(_first(record, _QUESTION), _first(record, _ANSWER))]
    )
    if not pairs or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise DataError("expected 'conversations' with a pair, or 'question' and 'answer', as text.")
    image = None if record.get("image") is None else _picture(images, record["image"])
    id_ = _first(record, _ID, index)
    questions = []
    for question, answer in pairs:
        text = question.replace(IMAGE_MARKER, "").strip()
        questions.append(
            Question(
                id=id_ if isinstance(id_, int | str) else str(id_),
                image=image,
                text=text,
                answer=answer,
                type=str(_first(record, _TYPE, "all")),
                prompt=(f"{IMAGE_MARKER}\n{text}" if image else text) if is_llava else question,
                record=index,
                has_id=any(name in record for name in _ID),
            )
        )
    return questions


def _pairs(messages: Any) -> list[tuple[Any, Any]]:
    try:
        texts = {"human": [], "gpt": []}  # type: dict[str, list[Any]]
        for message in messages:
            texts[message["from"]].append(message["value"])
        return list(zip(texts["human"], texts["gpt"], strict=True))
    except (KeyError, TypeError, ValueError):
        raise DataError("conversations are not pairs of messages from human and gpt.") from None


def image_in(folder: Path, name: Any, where: object) -> Path:
    """The path of a record's picture.

    Args:
        folder: that the name is relative to.
        name: as the record has it.
        where: the record is, for the error.

    Raises:
        DataError: the name leaves the folder.
    """
    try:
        return _picture(folder, name)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _picture(folder: Path, name: Any) -> Path:
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"image is {name!r:.200}; expected a path inside {folder}.")
    return folder / name
