"""LLaVA JSON -> conversations -> token ids with labels -> batches.

Format: docs/sources/tinyllava.md#training-data; labels: docs/sources/tinyllava.md#labels. Only
answers and the end-of-turn string after them are learned; prompts and pictures carry the label -100.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tinyllava_edge.checkpoint.config import IGNORE_LABEL, IMAGE_MARKER, IMAGE_TOKEN_ID
from tinyllava_edge.errors import DataError, ImageError, PromptError, RecordError
from tinyllava_edge.image import Preprocessing, open_picture, preprocess
from tinyllava_edge.picture_check import picture_error
from tinyllava_edge.prompt import Template, TextTokenizer, label_answers, place_markers
from tinyllava_edge.user_files import read_user_text

from .run import read_log_line

AnsweredTurn = tuple[str, str]  # question, answer

# Kinds of bad records, counted together.
MALFORMED, ROLE, MARKERS, MEDIA = "malformed record", "unknown role", "picture markers", "unread media"
_SPEAKERS = ("human", "gpt")
_NOT_READ = ("video", "videos", "audio", "audios", "images")  # keys of what would be left out in silence
_CACHE_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One sample: at most one picture, and turns whose markers are placed.

    Attributes:
        index: its record's place in the file, from 0.
        sha256: of the record, see `canonical`.
    """

    file: Path
    index: int
    id: str
    sha256: str
    picture: Path | None
    turns: tuple[AnsweredTurn, ...]

    @property
    def where(self) -> str:
        """The record by file and id, for messages."""
        return where(self.file, self.index, self.id)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one step; pictures in the order of their placeholders."""

    ids: list[list[int]]
    labels: list[list[int]]
    pixels: torch.Tensor  # [pictures, 3, height, width]


def where(file: Path, index: int, id_: str) -> str:
    """A record by file and id."""
    return f"{file}: record {index} (id {id_})"


def read_list(path: Path) -> list[Any]:
    """Read a JSON list that is not empty.

    Raises:
        DataError: the file is missing or of another form.
    """
    text = read_user_text(path, error=DataError)
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(records, list) or not records:
        raise DataError(f"{path}: expected a list of objects with id, image and conversations, as LLaVA has.")
    return records


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a training log; raises DataError where it is damaged."""
    return [read_log_line(line, path) for line in path.read_bytes().splitlines()]


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
    """A record of a LLaVA JSON file as a conversation; its picture is not looked at.

    Args:
        record: `{id, image?, conversations: [{from: human | gpt, value}, ...]}`.
        index: its place in the file.
        file: that it is from.
        images: folder that its image path is relative to.

    Raises:
        RecordError: it is malformed, or holds what training would leave out.
    """
    if not isinstance(record, Mapping):
        raise RecordError(MALFORMED, f"{type(record).__name__}, expected an object.")
    image = record.get("image")
    if image and not isinstance(image, str):
        raise RecordError(MALFORMED, f"image is {image!r:.80}, expected one path.")
    if unread := [key for key in _NOT_READ if record.get(key)]:
        raise RecordError(MEDIA, f"has the key {unread[0]!r}, which is not read; only 'image' is.")
    turns = _turns(record)
    try:
        placed = place_markers(turns, int(bool(image)))
    except PromptError as error:
        raise RecordError(MARKERS, str(error)) from None
    answered = tuple((question, str(answer)) for question, answer in placed)
    picture = images / image if image else None
    return Conversation(
        file=file,
        index=index,
        id=record_id(record, index),
        sha256=sha256_of(canonical(record)),
        picture=picture,
        turns=answered,
    )


def _turns(record: Mapping[str, Any]) -> list[AnsweredTurn]:
    messages = record.get("conversations")
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        keys = ", ".join(map(str, record))
        raise RecordError(
            MALFORMED, f"conversations is missing or not a list of objects (found keys: {keys:.80})."
        )
    if messages and messages[0].get("from") in ("gpt", "system"):
        messages = messages[1:]  # as upstream
    for message in messages:
        if message.get("from") not in _SPEAKERS:
            raise RecordError(ROLE, f"a message from {message.get('from')!r:.40}, expected 'human' or 'gpt'.")
    if not messages or len(messages) % 2:
        raise RecordError(
            MALFORMED, f"expected pairs of a human and a gpt message, found {len(messages)} messages."
        )
    for position, message in enumerate(messages):
        speaker = _SPEAKERS[position % 2]
        if message["from"] != speaker or not isinstance(message.get("value"), str):
            raise RecordError(MALFORMED, f"message {position} must be a text from {speaker!r}.")
    return [(q["value"], a["value"]) for q, a in zip(messages[::2], messages[1::2], strict=True)]


def encode_conversation(
    tokenizer: TextTokenizer, template: Template, turns: Sequence[AnsweredTurn]
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a conversation: see `label_answers`."""
    if template.name == "pretrain":  # the picture and its caption; the question is not shown
        turns = [(IMAGE_MARKER, turns[0][1])]
    return label_answers(tokenizer, template, turns)


def splice_labels(ids: Sequence[int], labels: Sequence[int], num_tokens: int) -> list[int]:
    """Labels after each -200 has become the `num_tokens` rows of a picture."""
    spliced: list[int] = []
    for token, label in zip(ids, labels, strict=True):
        spliced.extend([IGNORE_LABEL] * num_tokens if token == IMAGE_TOKEN_ID else [label])
    return spliced


class PictureReader:
    """Preprocessed pictures by path; the latest 512 MB of them stay in memory."""

    def __init__(self, how: Preprocessing) -> None:
        self.how = how
        size_bytes = 3 * how.image_size**2 * 4
        self._read = lru_cache(maxsize=max(1, _CACHE_BYTES // size_bytes))(
            lambda path: torch.from_numpy(preprocess(open_picture(path), how))
        )

    def read(self, path: Path) -> torch.Tensor:
        """Pixels [3, height, width].

        Raises:
            RecordError: the picture is missing or damaged.
        """
        try:
            return self._read(path)
        except ImageError as error:
            raise picture_error(path, error) from None
