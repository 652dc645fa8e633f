"""The loss of a batch, and weights written, on a random model of a few hundred kilobytes."""

from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import DataError
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import TinyLlava, load_model
from tinyllava_edge.train.data import Batch, encode_conversation
from tinyllava_edge.train.loop import conversation_loss, splice_batch
from tinyllava_edge.train.save import write_weights

TURNS = [
    [("<image>\nWhat is this?", "A small cat."), ("Sure?", "Yes.")],
    [("What is two plus two?", "Four.")],
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("train") / "tiny")


@pytest.fixture
def model(checkpoint: Path) -> TinyLlava:
    return load_model(Checkpoint(checkpoint))


@pytest.fixture
def batch(checkpoint: Path, model: TinyLlava) -> Batch:
    assets = read_assets(Checkpoint(checkpoint))
    encoded = [encode_conversation(assets.text_tokenizer(), assets.template, turns) for turns in TURNS]
    pixels = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(ids=[i for i, _ in encoded], labels=[labels for _, labels in encoded], pixels=pixels)


def test_the_loss_is_the_mean_over_answers_whatever_the_padding(model: TinyLlava, batch: Batch) -> None:
    """The reference asks the model sample by sample, without padding, through its own `logits`."""
    total, count = 0.0, 0
    for ids, labels, pixels in zip(batch.ids, batch.labels, (batch.pixels, None), strict=True):
        scores = model.logits(ids, pixels).log_softmax(-1)
        offset = 0 if pixels is None else model.config.vision.num_tokens - 1
        for position, label in enumerate(labels):
            if label >= 0:
                total -= float(scores[position + offset - 1, label])
                count += 1
    assert conversation_loss(model, batch).item() == pytest.approx(total / count, rel=1e-5)


def test_splicing_cuts_after_the_pictures_are_in(model: TinyLlava, batch: Batch) -> None:
    rows, labels = splice_batch(model, batch)
    assert rows.shape[:2] == labels.shape
    assert rows.shape[1] == len(batch.ids[0]) + model.config.vision.num_tokens - 1
    object.__setattr__(model.config, "tokenizer_max_length", 50)
    assert splice_batch(model, batch)[0].shape[1] == 50


def test_a_saved_checkpoint_is_loaded_strictly_with_bit_equal_logits(
    checkpoint: Path, model: TinyLlava, batch: Batch, tmp_path: Path
) -> None:
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    write_weights(model, tmp_path)
    loaded = load_model(Checkpoint(tmp_path))
    assert Checkpoint(tmp_path).config == model.config
    assert torch.equal(loaded.logits(batch.ids[0], batch.pixels), model.logits(batch.ids[0], batch.pixels))


def test_weights_that_are_not_finite_are_not_written(model: TinyLlava, tmp_path: Path) -> None:
    with torch.no_grad():
        model.connector[0].weight[0, 0] = 1e6  # type: ignore[index]
    with pytest.raises(DataError, match=r"connector._connector.0.weight: not finite"):
        write_weights(model, tmp_path)
    assert not list(tmp_path.iterdir())
