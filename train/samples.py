"""The user's conversations as the batches of a run, each a function of seed and step alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tinyllava_edge.checkpoint.config import IGNORE_LABEL
from tinyllava_edge.errors import DataError
from tinyllava_edge.prompt import Template, TextTokenizer

from .data import Batch, Conversation, PictureReader, encode_conversation, splice_labels


@dataclass(kw_only=True)
class Samples:
    """Batches in a new random order every epoch; the last one of an epoch may be small.

    Attributes:
        limit: positions that are left of a conversation, its picture's `num_tokens` counted.
        num_tokens: positions of one picture.
        seed: of the order.
    """

    conversations: Sequence[Conversation]
    tokenizer: TextTokenizer
    template: Template
    reader: PictureReader
    batch_size: int
    limit: int
    num_tokens: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every conversation is seen once."""
        return -(-len(self.conversations) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0.

        Raises:
            DataError: no answer is left of any of its conversations.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        order = list(range(len(self.conversations)))
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        numbers = order[index * self.batch_size : (index + 1) * self.batch_size]
        return self._encode([self.conversations[number] for number in numbers])

    def _encode(self, chosen: Sequence[Conversation]) -> Batch:
        encoded = [encode_conversation(self.tokenizer, self.template, c.turns) for c in chosen]
        left = [splice_labels(ids, labels, self.num_tokens)[: self.limit] for ids, labels in encoded]
        if all(label == IGNORE_LABEL for labels in left for label in labels):
            raise DataError(
                f"conversations {', '.join(c.id for c in chosen)}: no answer within the first {self.limit} "
                "positions, the tokenizer's maximum length. Shorten the questions, or leave them out."
            )
        pictures = [c.picture for c in chosen if c.picture is not None]
        pixels = self.reader.read(pictures) if pictures else torch.zeros(0)
        return Batch(
            ids=[ids for ids, _ in encoded],
            labels=[labels for _, labels in encoded],
            pixels=pixels,
        )
