"""A message of a record, in either of the field's forms: `from` and `value`, or `role` and `content`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.errors import RecordError
from tinyllava_edge.media_names import named_media

from .rows import MALFORMED

# Kinds of bad records, counted together.
ROLE, MARKERS, MEDIA = "unknown role", "picture markers", "unread media"
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
# Keys of what would be left out in silence.
NOT_READ = ("video", "videos", "audio", "audios", "tools", "functions")
_SAID = ("from", "role", "value", "content")
_NOT_READ_IN_MESSAGE = (*NOT_READ, "image", "images", "tool_calls", "function_call")
_PARTS = {"text": ("text",), "image": ("image", "path", "url"), "image_url": ("image_url",)}  # and their keys
_VIDEO = re.compile(r"^\s*<(?:video|audio)>|<(?:video|audio)>\s*$")
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
    others = {key: value for key, value in message.items() if key not in _SAID}
    named = [key for key, value in others.items() if named_media(value)] if others else []
    refuse_unread(others, (*_NOT_READ_IN_MESSAGE, *named), f"{where} ")
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
    if speaker == "human" and (found := _VIDEO.search(text)):
        raise RecordError(
            MEDIA, f"{where}: {found[0].strip()} where a picture's marker stands; it is not read."
        )
    return Message(speaker, text, pictures)


def _parts(parts: Sequence[Any], where: str) -> tuple[str, list[str | None]]:
    """The text and the pictures of a content in parts: one text, and pictures before it, or one behind it."""
    text, behind = "", 0
    pictures: list[str | None] = []
    for part in parts:
        kind, value = _part(part, len(pictures), where)
        if kind != "text":
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


def _part(part: Any, place: int, where: str) -> tuple[str, str | None]:
    """A part's type, and its text or the path of its picture, None where it does not say.

    Args:
        part: as JSON has it.
        place: of a picture among those of its message.
        where: the message is, for errors.
    """
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind not in _PARTS:
        raise RecordError(MEDIA, f"{where}: a part of type {kind!r:.40}, expected 'text' or 'image'.")
    is_picture = kind != "text"
    said = {key: value for key, value in part.items() if key != "type" and value is not None}
    if is_picture and said.get("index") == place:
        del said["index"]
    for key in said:
        if key not in _PARTS[kind]:
            raise RecordError(MEDIA, f"{where}: a part of type {kind!r} has {key!r}, which is not read.")
    if len(said) > 1:
        raise RecordError(MALFORMED, f"{where}: {kind!r} has {' and '.join(said)} in a part, expected one.")
    value = next(iter(said.values()), None)
    if kind == "image_url" and isinstance(value, Mapping):  # OpenAI's; its `detail` is for OpenAI's models
        value = value.get("url")
    if not isinstance(value, str) and not (is_picture and value is None):
        raise RecordError(MALFORMED, f"{where}: {kind!r} is {type(value).__name__} in a part, expected str.")
    return kind, value
