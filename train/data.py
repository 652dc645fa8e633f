"""Conversations -> token ids with labels; pictures -> pixels.

Labels: docs/sources/tinyllava.md#labels. Only answers and the end-of-turn string after them are learned;
prompts and pictures carry the label -100.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tinyllava_edge.checkpoint.config import IGNORE_LABEL, IMAGE_MARKER, IMAGE_TOKEN_ID
from tinyllava_edge.errors import ImageError
from tinyllava_edge.image import Preprocessing, open_picture, preprocess
from tinyllava_edge.picture_check import picture_error
from tinyllava_edge.prompt import Template, TextTokenizer, label_answers

from .conversations import AnsweredTurn
from .run import read_log_line

_CACHE_BYTES = 512 << 20


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a training log; raises DataError where it is damaged."""
    return [read_log_line(line, path) for line in path.read_bytes().splitlines()]


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
