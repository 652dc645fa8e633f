"""A record of a file -> the questions in it.

Source of the keys: docs/sources/measuring.md#question-files.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.errors import DataError
from tinyllava_edge.media_names import named_media

from .question import Question, Record, Shown
from .question_files import Raw
from .tables import TablePicture

# What the files of the field call the same thing; POPE's, for one, are of the second kind.
_QUESTION, _ANSWER = ("question", "text"), ("answer", "answers", "label")
_TYPE, _ID = ("type", "category"), ("id", "question_id")
_TALK, PICTURE = ("conversations", "messages"), ("image", "images", "picture")
_OTHER_PICTURE = re.compile(r"(?i)(image|img|picture|photo|frame|video)s?(_?(id|path|file|name|url))?")
_SPEAKER, _SAID = ("from", "role"), ("value", "content")
_PEOPLE = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}
LISTED = 5  # missing pictures, or bad records, that an error names
_SUFFIXES = (".jpg", ".png", ".jpeg")  # of MME's pictures, which their text files do not name


def _first(record: Mapping[str, Any], names: Sequence[str], default: Any = None) -> Any:
    """The value under the first of several names; tables of several sets have null under the others."""
    return next((record[name] for name in names if record.get(name) is not None), default)


def unread_picture(raw: Raw) -> DataError | None:
    """What is wrong with a record without a picture in which another key names one; None where nothing is."""
    if isinstance(raw, DataError) or _first(raw, PICTURE) is not None:
        return None
    others = ((key, value) for key, value in raw.items() if key not in (*_TALK, *_QUESTION, *_ANSWER))
    for key, value in others:
        if named_media(value) or (_OTHER_PICTURE.fullmatch(key) and value):
            return DataError(f"has the key {key!r} ({value!r:.80}), which is not read; 'image' is.")
    return None


def read_record(raw: Raw, index: int, images: Path) -> Record:
    """The questions of a record; all that is wrong with it is said at once, by its keys.

    Args:
        raw: as `question_files` has it.
        index: its place in the file.
        images: folder that the image paths are relative to.
    """
    if isinstance(raw, DataError):
        return raw
    faults: list[str] = []

    def read(step: Any, *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except DataError as error:
            faults.append(str(error))

    talk = _first(raw, _TALK)
    pairs = [read(_pair, raw)] if talk is None else read(_pairs, talk)
    image = read(shown_picture, raw, images)
    if faults:
        return DataError(" ".join(faults))
    id_ = _first(raw, _ID, index)
    about = {
        "id": id_ if isinstance(id_, int | str) else str(id_),
        "image": image,
        "type": str(_first(raw, _TYPE, "all")),
        "record": index,
        "has_id": _first(raw, _ID) is not None,
        "picture": name if isinstance(name := _name(raw), str) else "",
        "options": raw.get("options") if isinstance(raw.get("options"), Mapping) else {},
        "labelled": raw.get("label") is not None,
    }
    questions = []
    for question, answers in pairs:
        text = question.replace(IMAGE_MARKER, "").strip()
        prompt = question if talk is None else f"{IMAGE_MARKER}\n{text}" if image else text
        questions.append(Question(text=text, answers=answers, prompt=prompt, **about))
    return tuple(questions)


def _pair(raw: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    question = _first(raw, _QUESTION)
    if not isinstance(question, str):
        found = ", ".join(map(str, raw)) if question is None else type(question).__name__
        raise DataError(f"expected 'conversations' with a pair, or 'question' as text, found {found:.200}.")
    key = next((name for name in _ANSWER if raw.get(name) is not None), "answer")
    return question, answers_of(raw.get(key), key)


def answers_of(value: Any, key: str = "answer") -> tuple[str, ...]:
    """Expected answers: a text, a number, or a list of them; VQAv2's are objects with `answer`.

    Raises:
        DataError: anything else stands there.
    """
    if value is None:
        return ()
    if isinstance(value, list):
        if any(isinstance(answer, list) for answer in value):
            raise DataError(f"{key} has a list in a list, expected texts or numbers.")
        return tuple(text for answer in value for text in answers_of(answer, key))
    if isinstance(value, Mapping) and "answer" in value and not isinstance(value["answer"], Mapping | list):
        return answers_of(value["answer"], key)
    if isinstance(value, str):
        return (value,)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{key} is {value!r:.80}, expected a text, a number, or a list of them.")
    return (str(int(value) if value == int(value) else value),)


def _pairs(messages: Any) -> list[tuple[str, tuple[str, ...]]]:
    """Each question with the answer behind it; the last one may have none."""
    try:
        spoken = [(_PEOPLE[_first(m, _SPEAKER)], _first(m, _SAID)) for m in messages]
    except (KeyError, TypeError, AttributeError):
        raise DataError("conversations are not pairs of messages from human and gpt.") from None
    if not spoken or [who for who, _ in spoken] != [index % 2 for index in range(len(spoken))]:
        raise DataError("conversations are not pairs of messages from human and gpt.")
    if not all(isinstance(text, str) for _, text in spoken):
        raise DataError("conversations have a message whose value is no text.")
    texts = [text for _, text in spoken]
    answers: list[tuple[str, ...]] = [(text,) for text in texts[1::2]]
    return list(zip(texts[::2], [*answers, ()], strict=False))


def shown_picture(raw: Mapping[str, Any], images: Path) -> Shown | None:
    """The picture of a record, in the folder; a DataError where it names none."""
    name = _name(raw)
    if isinstance(name, list):
        raise DataError(f"image lists {len(name)} pictures; a question is about one.")
    if name is None or isinstance(name, TablePicture):
        return name
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"image is {name!r:.200}; expected a path inside {images}.")
    if raw.get("stem"):  # MME's text files are called as their picture
        ends = (images / f"{name}{suffix}" for suffix in _SUFFIXES)
        return next((path for path in ends if path.is_file()), images / f"{name}{_SUFFIXES[0]}")
    return images / name


def _name(raw: Mapping[str, Any]) -> Any:
    """What a record has for its picture; of a list of one, that."""
    name = _first(raw, PICTURE)
    return name if not isinstance(name, list) or name[1:] else name[0] if name else None


def listed(faults: Sequence[str]) -> str:
    """The first of many faults, and how many more there are."""
    more = f" (and {len(faults) - LISTED} more)" if faults[LISTED:] else ""
    return " ".join(faults[:LISTED]) + more
