"""Several conversations about one picture in one row, against each of them alone."""

from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.train.data import Batch, encode_conversation
from tinyllava_edge.train.loop import conversation_loss
from tinyllava_edge.train.packed import pack, packed_loss

ROWS = [
    [
        [("<image>\nWhat is this?", "A small cat.")],
        [("<image>\nIs it red?", "No."), ("Sure?", "Yes, it is a black cat.")],
        [("<image>\nWhich kind of thing is this?", "mammal")],
    ],
    [[("<image>\nWhat?", "bird")]],
]


def test_the_loss_is_that_of_every_conversation_by_itself(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny")
    model = load_model(Checkpoint(checkpoint))
    assets = read_assets(Checkpoint(checkpoint))
    pixels = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokenizer = assets.text_tokenizer()
    rows = [[encode_conversation(tokenizer, assets.template, turns) for turns in row] for row in ROWS]
    packed = pack(rows, pixels)
    weight = next(model.connector.parameters())
    (gradient,) = torch.autograd.grad(packed_loss(model, packed), weight)

    flat = [(encoded, pixels[index]) for index, row in enumerate(rows) for encoded in row]
    alone = Batch(
        ids=[ids for (ids, _), _ in flat],
        labels=[labels for (_, labels), _ in flat],
        pixels=torch.stack([picture for _, picture in flat]),
    )
    expected = conversation_loss(model, alone)
    assert packed_loss(model, packed).item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, weight)[0], rtol=1e-3, atol=1e-6)
