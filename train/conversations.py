"""A record of training data, in each of the field's forms -> a conversation.

Forms: docs/training.md#data. Upstream's own: docs/sources/tinyllava.md#training-data.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.errors import PromptError, RecordError
from tinyllava_edge.media_names import NO_PICTURE, named_media
from tinyllava_edge.prompt import place_markers

from .messages import MARKERS, MEDIA, NOT_READ, ROLE, Message, one_of, read_message, refuse_unread
from .rows import MALFORMED

AnsweredTurn = tuple[str, str]  # question, answer

# Kinds of what is to be known of a record, and of a bad one.
PASSED, OTHER_MARKER, SYSTEM = "passed over", "other marker", "system text"
_IMAGE_KEYS = ("image", "images")
_MESSAGES = ("conversations", "messages")
_MARKER_TEXT = re.compile(
    r"<(?:video|audio|IMAGE|im_(?:start|end|patch)|image[-_ ][^<>]{1,16}"
    r"|\|(?:image|video|audio|vision)[^<>]{0,16}\|)>"
)
_ADDRESS = re.compile(r"\w+://|data:", re.IGNORECASE)
_LONGEST_PATH = 4096  # Linux' PATH_MAX


@dataclass(frozen=True, kw_only=True)
class Located:
    """A record and where it is from.

    Attributes:
        index: its place in the file, from 0.
        record: as JSON has it; its text where it is not JSON.
    """

    file: Path
    index: int
    record: Any

    @property
    def id(self) -> str:
        """What it is called."""
        return record_id(self.record, self.index)

    @property
    def sha256(self) -> str:
        """Its hash, see `canonical`."""
        return sha256_of(canonical(self.record))

    @property
    def where(self) -> str:
        """The record by file and id, for messages."""
        return f"{self.file}: record {self.index} (id {self.id})"


@dataclass(frozen=True, kw_only=True)
class Conversation(Located):
    """One sample: pictures, and turns with a placed marker for each, in their order.

    Attributes:
        system: in the place of the template's own system text; "" leaves that.
        notes: kind and reason of what is to be known of it.
    """

    pictures: tuple[Path, ...]
    turns: tuple[AnsweredTurn, ...]
    system: str = ""
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class BadRow(Located):
    """A record that is no conversation, and why."""

    fault: RecordError


def canonical(record: Any) -> str:
    """A record as one line of JSON, whatever the order of its keys and the spaces between them."""
    return json.dumps(record, sort_keys=True)


def sha256_of(text: str) -> str:
    """Hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def record_id(record: Any, index: int) -> str:
    """What a record is called."""
    return str(record.get("id", index) if isinstance(record, Mapping) else index)


def parse_record(record: Any, index: int, file: Path, images: Path) -> Conversation:
    """A record as a conversation; its pictures are not looked at.

    Args:
        record: `{id, image?, conversations: [{from, value}, ...]}`, or `{messages: [{role, content}, ...]}`.
        index: its place in the file.
        file: that it is from.
        images: folder that its pictures' paths are relative to.

    Raises:
        RecordError: it is malformed, or holds what training would leave out.
    """
    if not isinstance(record, Mapping):
        raise RecordError(MALFORMED, f"{type(record).__name__}, expected an object.")
    refuse_unread(record, NOT_READ, "")
    _, found = one_of(record, _MESSAGES, "")
    if not isinstance(found, list) or not all(isinstance(m, Mapping) for m in found):
        raise RecordError(
            MALFORMED,
            f"neither conversations nor messages is a list of objects (found keys: {_keys(record)}).",
        )
    messages = [read_message(message, f"message {place}") for place, message in enumerate(found)]
    pictures = _pictures(record, messages)
    system, notes = _system(record, messages), []
    if messages and messages[0].speaker == "gpt":  # as upstream
        notes.append((PASSED, "the first message is from the model: not used, as upstream does not."))
        messages = messages[1:]
    turns = _turns(messages, skipped=len(found) - len(messages))
    if found := next(filter(None, (_MARKER_TEXT.search(text) for turn in turns for text in turn)), None):
        notes.append((OTHER_MARKER, f"{found[0]} in the text: learned as text."))
    try:
        placed = place_markers(turns, len(pictures))
    except PromptError as error:
        raise RecordError(MARKERS, f"{error} Keys of the record: {_keys(record)}.") from None
    return Conversation(
        file=file,
        index=index,
        record=record,
        pictures=tuple(images / picture for picture in pictures),
        turns=tuple((question, str(answer)) for question, answer in placed),
        system=system,
        notes=tuple(notes),
    )


def _keys(record: Mapping[str, Any]) -> str:
    return f"{', '.join(map(str, record)):.80}"


def _pictures(record: Mapping[str, Any], messages: Sequence[Message]) -> list[str]:
    """Paths of a record's pictures, in the order of their markers."""
    key, value = one_of({key: record.get(key) or None for key in _IMAGE_KEYS}, _IMAGE_KEYS, "")
    paths = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(path, str) and path for path in paths):
        raise RecordError(MALFORMED, f"{key} is {value!r:.80}, expected one path or a list of them.")
    parts = [path for message in messages for path in message.pictures]
    if named := [path for path in parts if path is not None]:
        if paths or len(named) < len(parts):
            raise RecordError(
                MALFORMED, f"some pictures are named in parts of a content, some in {key!r} or nowhere."
            )
        paths = named
    for path in paths:
        if NO_PICTURE.search(path):
            raise RecordError(MEDIA, f"{path:.80} is no picture, and is not read.")
        if _ADDRESS.match(path) or len(path) > _LONGEST_PATH:
            raise RecordError(MEDIA, f"{path:.80} is an address or a picture itself; expected a file's path.")
    for name, value in () if paths else record.items():
        if name not in _MESSAGES and (medium := named_media(value)):
            raise RecordError(MEDIA, f"has the key {name!r} ({medium:.80}), which is not read; 'image' is.")
    return list(paths)


def _system(record: Mapping[str, Any], messages: list[Message]) -> str:
    """Take the system text off the messages, or the record; "" where there is none."""
    given = record.get("system") or ""
    if not isinstance(given, str):
        raise RecordError(MALFORMED, f"system is {given!r:.40}, expected a text.")
    if IMAGE_MARKER in given:
        raise RecordError(MARKERS, f"{IMAGE_MARKER} in the system text; only questions show pictures.")
    if messages and messages[0].speaker == "system":
        said = messages.pop(0).text
        if said.strip() and given.strip():
            raise RecordError(MALFORMED, "has the key 'system' and a message from 'system', expected one.")
        given = said if said.strip() else given
    return given.strip()


def _turns(messages: Sequence[Message], *, skipped: int) -> list[AnsweredTurn]:
    for position, message in enumerate(messages):
        expected = ("human", "gpt")[position % 2]
        if message.speaker == "system":
            raise RecordError(
                ROLE, f"message {position + skipped} is from 'system', which only the first may be."
            )
        if message.speaker != expected:
            raise RecordError(MALFORMED, f"message {position + skipped} must be a text from {expected!r}.")
    if not messages or len(messages) % 2:
        raise RecordError(
            MALFORMED, f"expected pairs of a human and a gpt message, found {len(messages)} messages."
        )
    return [(q.text, a.text) for q, a in zip(messages[::2], messages[1::2], strict=True)]
