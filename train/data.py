"""LLaVA JSON -> conversations -> token ids with labels -> batches.

Format: docs/sources/tinyllava.md#training-data; labels: docs/sources/tinyllava.md#labels. Only
answers and the end-of-turn string after them are learned; prompts and pictures carry the label -100.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tinyllava_edge.checkpoint.config import IGNORE_LABEL, IMAGE_MARKER, IMAGE_TOKEN_ID
from tinyllava_edge.errors import DataError, PromptError
from tinyllava_edge.image import Preprocessing, open_picture, preprocess
from tinyllava_edge.prompt import Template, TextTokenizer, label_answers, place_markers
from tinyllava_edge.user_files import read_user_text

AnsweredTurn = tuple[str, str]  # question, answer

_SPEAKERS = ("human", "gpt")
_CACHE_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One sample: at most one picture, and turns whose markers are placed."""

    id: str
    picture: Path | None
    turns: tuple[AnsweredTurn, ...]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one step; pictures in the order of their placeholders."""

    ids: list[list[int]]
    labels: list[list[int]]
    pixels: torch.Tensor  # [pictures, 3, height, width]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects.

    Raises:
        DataError: the file is missing or of another form.
    """
    text = read_user_text(path, error=DataError)
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(records, list) or not records or not all(isinstance(r, dict) for r in records):
        raise DataError(f"{path}: expected a list of objects with id, image and conversations, as LLaVA has.")
    return records


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_conversations(path: Path, images: Path) -> list[Conversation]:
    """Read a LLaVA JSON file and check that every picture is there.

    Args:
        path: list of `{id, image?, conversations: [{from: human | gpt, value}, ...]}`.
        images: folder that the image paths are relative to.

    Raises:
        DataError: a record is malformed (the message names it), or pictures are missing (it lists them).
    """
    records = read_records(path)
    for index, record in enumerate(records):
        if not isinstance(record.get("image") or "", str):
            raise DataError(f"{path}: record {index}: image is {record['image']!r}, expected one path.")
    check_pictures([str(r["image"]) for r in records if r.get("image")], images)
    return [_conversation(record, index, path, images) for index, record in enumerate(records)]


def check_pictures(names: Sequence[str], images: Path) -> None:
    """Look for every picture before any work is done.

    Raises:
        DataError: some are missing; the message counts them and lists the first ten.
    """
    missing = [name for name in dict.fromkeys(names) if not (images / name).is_file()]
    if missing:
        listed = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise DataError(
            f"{len(missing)} pictures are missing in {images}: {listed}. "
            "Image paths are relative to the folder given by --images."
        )


def _conversation(record: dict[str, Any], index: int, path: Path, images: Path) -> Conversation:
    where = f"{path}: record {index} (id {record.get('id')!r})"
    messages = record.get("conversations")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise DataError(f"{where}: conversations is missing or not a list of objects.")
    if messages and messages[0].get("from") != "human":
        messages = messages[1:]  # as upstream
    if not messages or len(messages) % 2:
        raise DataError(
            f"{where}: expected pairs of a human and a gpt message, found {len(messages)} messages."
        )
    for position, message in enumerate(messages):
        speaker = _SPEAKERS[position % 2]
        if message.get("from") != speaker or not isinstance(message.get("value"), str):
            raise DataError(f"{where}: message {position} must be a text from {speaker!r}.")
    turns = [(q["value"], a["value"]) for q, a in zip(messages[::2], messages[1::2], strict=True)]
    picture = images / str(record["image"]) if record.get("image") else None
    try:
        placed = place_markers(turns, int(picture is not None))
    except PromptError as error:
        raise DataError(f"{where}: {error}") from None
    answered = tuple((question, str(answer)) for question, answer in placed)
    return Conversation(id=str(record.get("id", index)), picture=picture, turns=answered)


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
        size_bytes = 3 * how.image_size**2 * 4
        self._read = lru_cache(maxsize=max(1, _CACHE_BYTES // size_bytes))(
            lambda path: torch.from_numpy(preprocess(open_picture(path), how))
        )

    def read(self, paths: Sequence[Path]) -> torch.Tensor:
        """Pixels [pictures, 3, height, width]."""
        return torch.stack([self._read(path) for path in paths])
