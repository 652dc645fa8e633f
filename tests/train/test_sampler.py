"""The order of the samples; groups against upstream's own sampler."""

import pytest
import torch

from tinyllava_edge.train.sampler import EpochSampler, grouped_by_length, grouped_by_modality

# Batch size, processes, words of each record (below 0: no picture), and what upstream's LengthGroupedSampler
# (docs/sources/tinyllava.md#grouped-batches; run with torch.manual_seed(7)) makes of them: by modality, and
# of the lengths alone.
UPSTREAMS = {
    "two processes": (2, 2,
        [9, 5, -32, -31, 14, -2, 25, -1, -18, 15, -7, 2, 35, -25, -28, 34, -29, 36, -15, -30, 2, -36, 7],
        [12, 1, 15, 21, 6, 20, 4, 0, 13, 7, 10, 5, 17, 11, 9, 22, 2, 18, 19, 16, 8, 3, 14],
        [15, 1, 9, 10, 14, 7, 11, 20, 21, 5, 12, 18, 17, 0, 3, 16, 2, 4, 6, 8, 19, 22, 13],
    ),
    "one process": (3, 1,
        [19, -22, -33, -28, 13, -38, -32, 33, 3, 26, 12, 24, 33, -11],
        [7, 11, 2, 5, 6, 13, 12, 0, 8, 9, 4, 10, 3, 1],
        [5, 3, 13, 12, 7, 11, 2, 1, 8, 9, 4, 10, 6, 0],
    ),
    "a rest that fills a step": (2, 2,
        [26, 2, -20, -40, -26, -11, -1, -35, 36, 33, 37, -18, -39, 1, -33, -34, 14, 4, -24, -13, 27, 23],
        [8, 20, 15, 6, 10, 13, 9, 0, 7, 5, 18, 19, 3, 2, 12, 14, 21, 1, 16, 17, 4, 11],
        [3, 11, 14, 0, 4, 13, 21, 17, 8, 18, 9, 20, 12, 19, 10, 16, 7, 6, 15, 5, 2, 1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UPSTREAMS)
def test_batches_are_grouped_as_upstreams(name: str) -> None:
    batch_size, world_size, lengths, by_modality, by_length = UPSTREAMS[name]

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(7)

    absolute = [abs(length) for length in lengths]
    assert grouped_by_modality(lengths, batch_size, world_size, seeded()) == by_modality
    assert grouped_by_length(absolute, batch_size, world_size, seeded()) == by_length
    assert grouped_by_modality(absolute, batch_size, world_size, seeded()) == by_length  # one kind alone


def test_epochs_have_orders_of_their_own_that_follow_from_the_seed() -> None:
    sampler = EpochSampler(50, 3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first != list(EpochSampler(50, 4))


def test_a_grouped_epoch_has_every_sample_once() -> None:
    sampler = EpochSampler(5, 0, lengths=[3, -2, 4, 5, -1], batch_size=2)
    assert sorted(sampler) == list(range(5))
    assert len(sampler) == 5
