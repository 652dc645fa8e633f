"""The loop of nano on a random model of a few hundred kilobytes."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from examples.nano.loop import Loop, train_stage
from examples.nano.packed import PackedBatch, pack, packed_loss
from examples.nano.recipe import Stage
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import DataError
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import TinyLlava, load_model
from tinyllava_edge.prompt import label_answers

TURNS = (("<image>\nWhat is this?", "A small cat."), ("Sure?", "Yes.")), (("<image>\nIs it red?", "No."),)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("train") / "tiny")


@pytest.fixture
def model(checkpoint: Path) -> TinyLlava:
    return load_model(Checkpoint(checkpoint))


@pytest.fixture
def batch(checkpoint: Path, model: TinyLlava) -> PackedBatch:
    assets = read_assets(Checkpoint(checkpoint))
    rows = [[label_answers(assets.text_tokenizer(), assets.template, turns)] for turns in TURNS]
    return pack(rows, torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def _train(model: TinyLlava, batch: PackedBatch, stage: Stage, log: Path) -> None:
    train_stage(
        model,
        stage,
        (partial(packed_loss, model, batch) for _ in range(stage.epochs)),
        num_steps=stage.epochs,
        loop=Loop(accelerator=Accelerator(mixed_precision="no", cpu=True), log=log),
    )


def _stage(**rates: float) -> Stage:
    rates_by_part: Any = rates
    return Stage(
        name="fit", template="llama", learning_rates=rates_by_part, muon_rate=0.02, epochs=60, batch_size=2
    )


def test_the_loss_falls_on_two_conversations_that_are_seen_again_and_again(
    model: TinyLlava, batch: PackedBatch, tmp_path: Path
) -> None:
    before = packed_loss(model, batch).item()
    _train(model, batch, _stage(connector=1e-3, language_model=3e-3), tmp_path / "log.jsonl")
    assert packed_loss(model, batch).item() < 0.1 * before
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["learning_rate"] == 0


def test_only_the_parts_with_a_learning_rate_change(
    checkpoint: Path, model: TinyLlava, batch: PackedBatch, tmp_path: Path
) -> None:
    _train(model, batch, _stage(connector=1e-3), tmp_path / "log.jsonl")
    fresh = load_model(Checkpoint(checkpoint))
    changed = {
        name.split(".")[0]
        for (name, new), old in zip(model.named_parameters(), fresh.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert changed == {"connector"}


def test_a_training_that_diverges_is_stopped(model: TinyLlava, batch: PackedBatch, tmp_path: Path) -> None:
    with torch.no_grad():
        model.connector[0].weight[0, 0] = float("inf")  # type: ignore[index]
    with pytest.raises(DataError, match="fit: the loss of step 1 is not finite"):
        _train(model, batch, _stage(connector=1e-3), tmp_path / "log.jsonl")
