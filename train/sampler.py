"""The order of the samples: shuffled, or batches of one kind and about one length, as upstream groups them.

Source of the grouping: docs/sources/tinyllava.md#grouped-batches.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Every place once an epoch, in an order that follows from seed and epoch alone.

    Args:
        count: of samples.
        seed: of the order.
        lengths: of each sample, below 0 where it has no picture; with them batches are grouped.
        batch_size: of one process.
        world_size: processes.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        *,
        lengths: Sequence[int] | None = None,
        batch_size: int = 1,
        world_size: int = 1,
    ) -> None:
        self._count, self._seed, self._lengths = count, seed, lengths
        self._batch_size, self._world_size = batch_size, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of that epoch from the next `iter` on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self._seed << 20) + self.epoch)
        if self._lengths is None:
            return iter(torch.randperm(self._count, generator=generator).tolist())
        return iter(grouped_by_modality(self._lengths, self._batch_size, self._world_size, generator))


def grouped_by_modality(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator
) -> list[int]:
    """An order whose steps of `world_size` batches are of pictures alone or of text alone.

    Each kind is grouped by length; what is left over of both comes together: first where it fills a step,
    behind all others where it does not. Of one kind alone, that is grouped by length.
    """
    kinds = [
        [place for place, length in enumerate(lengths) if (length > 0) is has_picture]
        for has_picture in (True, False)
    ]
    size = batch_size * world_size
    if not all(kinds):
        return grouped_by_length([abs(length) for length in lengths], batch_size, world_size, generator)
    whole: list[list[int]] = []
    rest: list[int] = []
    for places in kinds:
        inner = grouped_by_length([abs(lengths[at]) for at in places], batch_size, world_size, generator)
        steps = _cut([places[at] for at in inner], size)
        whole += steps[:-1]
        rest += steps[-1]
    order = [whole[at] for at in torch.randperm(len(whole), generator=generator).tolist()]
    if len(rest) >= size:
        order.insert(0, rest[:size])
        rest = rest[size:]
    return [place for step in (*order, rest) for place in step]


def grouped_by_length(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator
) -> list[int]:
    """A shuffled order, in each step of which the batches have about the same length in sum."""
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    order: list[int] = []
    for step in _cut(shuffled, batch_size * world_size):
        longest_first = sorted(step, key=lambda place: lengths[place], reverse=True)
        order += [place for batch in _even_batches(longest_first, lengths, world_size) for place in batch]
    return order


def _even_batches(places: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Deal places out, each to the batch that is shortest so far and not full."""
    if len(places) % count:
        return [list(places[start::count]) for start in range(count)]
    batches: list[list[int]] = [[] for _ in range(count)]
    sums = [0.0] * count
    for place in places:
        shortest = sums.index(min(sums))
        batches[shortest].append(place)
        sums[shortest] += lengths[place]
        if len(batches[shortest]) == len(places) // count:
            sums[shortest] = float("inf")
    return batches


def _cut(places: Sequence[int], size: int) -> list[list[int]]:
    return [list(places[start : start + size]) for start in range(0, len(places), size)]
