"""Samples -> the tensors of a batch, spliced as `TinyLlavaForTraining` takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
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
        budgets: smaller numbers of rows that the same samples are learned with, too.
    """

    limit: int
    num_tokens: int
    image_size: int
    budgets: tuple[int, ...] = ()

    def __call__(self, items: Sequence[Sample | Fault]) -> dict[str, Any]:
        """See `TinyLlavaForTraining.forward` for the tensors; none of faults alone."""
        faults = [item for item in items if isinstance(item, Fault)]
        if len(faults) == len(items):
            return {FAULTS: faults}
        samples = [item for item in items if isinstance(item, Sample)]
        pixels = [picture for sample in samples for picture in sample.pixels]
        if not pixels:
            pixels = [torch.zeros(3, self.image_size, self.image_size)]
        kept = [self._kept(sample.encoded.ids) for sample in samples]
        return {
            **_spliced(samples, self.num_tokens, limit=self.limit),
            "pixel_values": torch.stack(pixels),
            **({"budgets": [_spliced(samples, n, kept=kept) for n in self.budgets]} if self.budgets else {}),
            FAULTS: faults,
        }

    def _kept(self, ids: Sequence[int]) -> int:
        """How many ids have a position within the limit: a smaller budget learns no more text than these."""
        positions = accumulate((self.num_tokens if token == IMAGE_TOKEN_ID else 1) for token in ids)
        return 1 + sum(end < self.limit for end in islice(positions, len(ids) - 1))


def _spliced(
    samples: Sequence[Sample], num_tokens: int, *, limit: int | None = None, kept: Sequence[int] | None = None
) -> dict[str, Any]:
    """The tensors of a batch but for the pixels, with so many rows for a picture.

    Args:
        samples: of the batch.
        num_tokens: rows of one picture.
        limit: positions that are left of a sample.
        kept: of each sample the ids that are left.
    """
    rows, labels = [], []
    picture_rows: list[int] = []
    pictures = 0
    for number, sample in enumerate(samples):
        own = slice(None if kept is None else kept[number])
        encoded, target = sample.encoded.ids[own], sample.encoded.labels[own]
        ids = _with_rows(encoded, num_tokens)[:limit]
        target = splice_labels(encoded, target, num_tokens)[:limit]
        target[0] = IGNORE_LABEL  # nothing stands before it
        rows.append(torch.tensor(ids))
        labels.append(torch.tensor(target))
        first = pictures * num_tokens
        picture_rows += range(first, first + ids.count(IMAGE_TOKEN_ID))  # a cut takes the last ones
        pictures += len(sample.pixels)
    padded = pad_sequence(labels, batch_first=True, padding_value=IGNORE_LABEL)
    following = torch.nn.functional.pad(padded[:, 1:], (0, 1), value=IGNORE_LABEL)
    return {
        "input_ids": pad_sequence(rows, batch_first=True),
        "labels": padded,
        "learned": (following != IGNORE_LABEL).flatten().nonzero().flatten(),
        "picture_rows": torch.tensor(picture_rows, dtype=torch.long),
    }


def _with_rows(ids: Sequence[int], num_tokens: int) -> list[int]:
    """Ids with -200 for every row of a picture."""
    spliced: list[int] = []
    for token in ids:
        spliced += [token] * (num_tokens if token == IMAGE_TOKEN_ID else 1)
    return spliced
