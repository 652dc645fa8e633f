"""The loss of a batch, and weights written, on a random model of a few hundred kilobytes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import write_tiny_checkpoint
from tests.train.own_data import loss_of
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import DataError
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import TinyLlava, load_model
from tinyllava_edge.train.batches import Collator, Encoded, Sample
from tinyllava_edge.train.data import encode_conversation
from tinyllava_edge.train.model import TinyLlavaForTraining
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
def samples(checkpoint: Path) -> list[Sample]:
    assets = read_assets(Checkpoint(checkpoint))
    pixels = torch.rand(3, 56, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoded = [encode_conversation(assets.text_tokenizer(), assets.template, turns) for turns in TURNS]
    return [
        Sample(Encoded(ids, labels, 0), picture)
        for (ids, labels), picture in zip(encoded, ([pixels], []), strict=True)
    ]


def _batch(model: TinyLlava, samples: list[Sample], *, limit: int = 512) -> dict[str, Any]:
    return Collator(limit, model.config.vision.num_tokens, 56)(samples)


def test_the_loss_is_the_mean_over_answers_whatever_the_padding(
    model: TinyLlava, samples: list[Sample]
) -> None:
    """The reference asks the model sample by sample, without padding, through its own `logits`."""
    total, count = 0.0, 0
    for sample in samples:
        pixels = torch.stack(sample.pixels) if sample.pixels else None
        scores = model.logits(sample.encoded.ids, pixels).log_softmax(-1)
        offset = 0 if pixels is None else model.config.vision.num_tokens - 1
        for position, label in enumerate(sample.encoded.labels):
            if label >= 0:
                total -= float(scores[position + offset - 1, label])
                count += 1
    wrapped, batch = TinyLlavaForTraining(model), _batch(model, samples)
    assert len(batch["learned"]) == count
    assert loss_of(wrapped, batch).item() == pytest.approx(total / count, rel=1e-5)
    in_all = loss_of(wrapped, {**batch, "num_items_in_batch": 7}).item()
    assert in_all == pytest.approx(total / 7, rel=1e-5)


def test_the_head_sees_the_learned_positions_alone(model: TinyLlava, samples: list[Sample]) -> None:
    seen: list[tuple[int, ...]] = []
    batch = _batch(model, samples)
    head: Any = model.language_model.lm_head
    handle = head.register_forward_hook(lambda _, args, output: seen.append(tuple(output.shape[:2])))
    loss_of(TinyLlavaForTraining(model), batch)
    handle.remove()
    assert seen == [(1, len(batch["learned"]))]
    assert len(batch["learned"]) < batch["input_ids"].numel() / 2


def test_splicing_cuts_after_the_pictures_are_in(model: TinyLlava, samples: list[Sample]) -> None:
    """A part of the picture stays, and no answer."""
    whole = _batch(model, samples)
    num_tokens = model.config.vision.num_tokens
    assert whole["input_ids"].shape[1] == len(samples[0].encoded.ids) + num_tokens - 1
    assert whole["picture_rows"].tolist() == list(range(num_tokens))
    limit = samples[0].encoded.ids.index(-200) + 3
    cut = _batch(model, samples, limit=limit)
    assert cut["input_ids"].shape[1] == cut["labels"].shape[1] == limit
    assert torch.equal(cut["input_ids"], whole["input_ids"][:, :limit])
    assert cut["picture_rows"].tolist() == [0, 1, 2]
    assert loss_of(TinyLlavaForTraining(model), {**cut, "num_items_in_batch": 1}).isfinite()


def test_text_alone_takes_a_picture_of_zeros_that_changes_nothing(
    model: TinyLlava, samples: list[Sample]
) -> None:
    """Upstream's (docs/sources/tinyllava.md#training-data): the connector has gradients, all of them 0."""
    batch = _batch(model, samples[1:])
    assert not batch["pixel_values"].any()
    assert batch["pixel_values"].shape == (1, 3, 56, 56)
    wrapped = TinyLlavaForTraining(model)
    loss = loss_of(wrapped, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.connector.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    other = loss_of(wrapped, {**batch, "pixel_values": torch.ones(1, 3, 56, 56)})
    assert torch.equal(other, loss)


def test_activations_that_are_computed_again_give_the_same_gradients(
    model: TinyLlava, samples: list[Sample]
) -> None:
    wrapped, batch = TinyLlavaForTraining(model), _batch(model, samples)
    kept: list[list[torch.Tensor]] = []
    sizes: list[int] = []
    model.train()
    for again in (False, True):
        if again:
            wrapped.checkpoint_activations()
        saved: list[int] = []

        def keep(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loss_of(wrapped, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        sizes.append(sum(saved))
        kept.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    for one, other in zip(*kept, strict=True):
        assert torch.equal(one, other)
    assert sizes[1] < sizes[0] / 2


def test_a_saved_checkpoint_is_loaded_strictly_with_bit_equal_logits(
    checkpoint: Path, model: TinyLlava, samples: list[Sample], tmp_path: Path
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
    ids, pixels = samples[0].encoded.ids, torch.stack(samples[0].pixels)
    assert torch.equal(loaded.logits(ids, pixels), model.logits(ids, pixels))


def test_weights_that_are_not_finite_are_not_written(model: TinyLlava, tmp_path: Path) -> None:
    with torch.no_grad():
        model.connector[0].weight[0, 0] = 1e6  # type: ignore[index]
    with pytest.raises(DataError, match=r"connector._connector.0.weight: not finite"):
        write_weights(model, tmp_path)
    assert not list(tmp_path.iterdir())
