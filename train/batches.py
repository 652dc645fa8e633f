"""Samples -> the tensors of a batch, spliced as `TinyLlavaForTraining` takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from tinyllava_edge.checkpoint.config import IGNORE_LABEL, IMAGE_TOKEN_ID

from .data import splice_labels

FAULTS = "faults"  # key of a batch that holds what its records were left out for


class Encoded(NamedTuple):
    """A conversation as a model takes it, before it is cut."""

    ids: list[int]
    labels: list[int]
    positions: int  # the pictures' counted


@dataclass(frozen=True)
class Fault:
    """A record that turned out to be bad when its batch was made, maybe in another process.

    Attributes:
        number: of the record, see `run_records`.
        kind: of what is wrong.
        reason: in words.
    """

    number: int
    kind: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """A conversation and the pixels [3, height, width] of its pictures."""

    encoded: Encoded
    pixels: list[torch.Tensor]


@dataclass(frozen=True)
class Collator:
    """Makes a batch of samples and faults; of text alone it has a picture of zeros, as upstream's.

    Attributes:
        limit: positions that are left of a sample, after its pictures' rows are in, as upstream does.
        num_tokens: rows of one picture.
        image_size: side of the picture of zeros.
    """

    limit: int
    num_tokens: int
    image_size: int

    def __call__(self, items: Sequence[Sample | Fault]) -> dict[str, Any]:
        """See `TinyLlavaForTraining.forward` for the tensors; none of faults alone."""
        faults = [item for item in items if isinstance(item, Fault)]
        if len(faults) == len(items):
            return {FAULTS: faults}
        rows, labels = [], []
        picture_rows: list[int] = []
        pixels: list[torch.Tensor] = []
        for sample in (item for item in items if isinstance(item, Sample)):
            ids = self._spliced(sample.encoded.ids)[: self.limit]
            target = splice_labels(sample.encoded.ids, sample.encoded.labels, self.num_tokens)[: self.limit]
            target[0] = IGNORE_LABEL  # nothing stands before it
            rows.append(torch.tensor(ids))
            labels.append(torch.tensor(target))
            first = len(pixels) * self.num_tokens
            picture_rows += range(first, first + ids.count(IMAGE_TOKEN_ID))  # a cut takes the last ones
            pixels += sample.pixels
        if not pixels:
            pixels = [torch.zeros(3, self.image_size, self.image_size)]
        padded = pad_sequence(labels, batch_first=True, padding_value=IGNORE_LABEL)
        following = torch.nn.functional.pad(padded[:, 1:], (0, 1), value=IGNORE_LABEL)
        return {
            "input_ids": pad_sequence(rows, batch_first=True),
            "labels": padded,
            "learned": (following != IGNORE_LABEL).flatten().nonzero().flatten(),
            "pixel_values": torch.stack(pixels),
            "picture_rows": torch.tensor(picture_rows, dtype=torch.long),
            FAULTS: faults,
        }

    def _spliced(self, ids: Sequence[int]) -> list[int]:
        """Ids with -200 for every row of a picture."""
        spliced: list[int] = []
        for token in ids:
            spliced += [token] * (self.num_tokens if token == IMAGE_TOKEN_ID else 1)
        return spliced
