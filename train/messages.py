"""A message of a record, in either of the field's forms: `from` and `value`, or `role` and `content`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.errors import RecordError

from .rows import MALFORMED

# Kinds of bad records, counted together.
ROLE, MARKERS, MEDIA = "unknown role", "picture markers", "unread media"
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
# Keys of what would be left out in silence.
NOT_READ = ("video", "videos", "audio", "audios", "tools", "functions")
_NOT_READ_IN_MESSAGE = (*NOT_READ, "image", "images", "tool_calls", "function_call")
_WEIGHTS = ("loss", "weight", "train")


class Message(NamedTuple):
    """What one says."""

    speaker: str  # human, gpt or system
    text: str
    pictures: list[str | None]  # of its parts; None where a part does not say


def one_of(found: Mapping[str, Any], keys: tuple[str, str], where: str) -> tuple[str, Any]:
    """The one of two keys that is there, and its value."""
    there = [key for key in keys if found.get(key) is not None]
    if len(there) == 2:
        raise RecordError(MALFORMED, f"{where}has {keys[0]!r} and {keys[1]!r}, expected one of them.")
    key = there[0] if there else keys[0]
    return key, found.get(key)


def refuse_unread(found: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Refuse what training would leave out, by its key."""
    for key in keys:
        if found.get(key):
            raise RecordError(MEDIA, f"{where}has the key {key!r}, which is not read.")


def read_message(message: Mapping[str, Any], where: str) -> Message:
    """A message of either form.

    Args:
        message: as JSON has it.
        where: it is, for errors.

    Raises:
        RecordError: it is malformed, or holds what training would leave out.
    """
    refuse_unread(message, _NOT_READ_IN_MESSAGE, f"{where} ")
    key, said = one_of(message, ("from", "role"), f"{where} ")
    speaker = _SPEAKERS.get(said) if isinstance(said, str) else None
    if speaker is None:
        known = ", ".join(map(repr, _SPEAKERS))
        raise RecordError(ROLE, f"{where}: a message from {said!r:.40} ({key!r}), expected one of {known}.")
    for weight in _WEIGHTS if speaker == "gpt" else ():
        if message.get(weight) not in (None, True):
            found = message[weight]
            raise RecordError(
                MALFORMED, f"{where} has {weight!r}: {found!r:.20}; all answers are learned alike."
            )
    key, content = one_of(message, ("value", "content"), f"{where} ")
    pictures: list[str | None] = []
    if isinstance(content, str):
        text = content
    elif isinstance(content, list) and key == "content":
        text, pictures = _parts(content, where)
    else:
        is_ = type(content).__name__
        raise RecordError(MALFORMED, f"{where} must be a text from {said!r}; its {key!r} is {is_}.")
    if speaker != "human" and IMAGE_MARKER in text:
        raise RecordError(
            MARKERS, f"{where}: {IMAGE_MARKER} in a text from {said!r}; only questions show pictures."
        )
    return Message(speaker, text, pictures)


def _parts(parts: Sequence[Any], where: str) -> tuple[str, list[str | None]]:
    """The text and the pictures of a content in parts: one text, and pictures before it, or one behind it."""
    text, behind = "", 0
    pictures: list[str | None] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "image") or not isinstance(part, Mapping):
            raise RecordError(MEDIA, f"{where}: a part of type {kind!r:.40}, expected 'text' or 'image'.")
        index = len(pictures) if kind == "image" else None
        for key, value in part.items():
            if value is not None and key not in ("type", kind) and not (key == "index" and value == index):
                raise RecordError(MEDIA, f"{where}: a part of type {kind!r} has {key!r}, which is not read.")
        value = part.get(kind)
        if not isinstance(value, str) and not (kind == "image" and value is None):
            raise RecordError(
                MALFORMED, f"{where}: {kind!r} is {type(value).__name__} in a part, expected str."
            )
        if kind == "image":
            pictures.append(value)
            behind += bool(text)
        elif text:
            raise RecordError(MALFORMED, f"{where}: several parts of type 'text', expected one.")
        else:
            text = str(value)
    if behind and len(pictures) > 1:
        raise RecordError(
            MARKERS, f"{where}: a picture behind the text; of several, all are shown before it."
        )
    if pictures and IMAGE_MARKER in text:
        raise RecordError(MARKERS, f"{where}: {IMAGE_MARKER} in its text, and parts of type 'image'.")
    return f"{IMAGE_MARKER}\n" * len(pictures) + text, pictures
