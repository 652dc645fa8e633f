"""One training for several budgets of visual tokens: what is averaged, and what a run writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.tiny import tiny_config, write_tiny_checkpoint
from tests.train.own_data import write_own_data
from tinyllava_edge.checkpoint.config import IGNORE_LABEL, IMAGE_TOKEN_ID
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.read_config import model_config
from tinyllava_edge.cli import app
from tinyllava_edge.errors import TinyLlavaEdgeError
from tinyllava_edge.model.vlm import TinyLlava, build_model
from tinyllava_edge.train.batches import Collator, Encoded, Sample
from tinyllava_edge.train.model import TinyLlavaForTraining
from tinyllava_edge.train.options import FinetuneOptions
from tinyllava_edge.train.plan import make_plan
from tinyllava_edge.train.training_options import TrainingOptions

BUDGETS = (16, 4, 1)


def _model(**changes: Any) -> TinyLlava:
    raw = tiny_config(connector="avg_pool", select_strategy="cls_patch") | {"token_budgets": list(BUDGETS)}
    torch.manual_seed(0)
    return build_model(model_config(raw | changes, Path("some")))


def _samples() -> list[Sample]:
    pictures = [torch.rand(3, 56, 56, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    return [
        Sample(_encoded([1, 9, IMAGE_TOKEN_ID, 20, 21, 22, 2], 4), pictures[:1]),
        Sample(_encoded([1, IMAGE_TOKEN_ID, 30, IMAGE_TOKEN_ID, 31, 32, 33, 34, 2], 5), pictures[1:]),
        Sample(_encoded([1, 40, 41, 42, 2], 2), []),
    ]


def _encoded(ids: list[int], learned_from: int) -> Encoded:
    labels = [IGNORE_LABEL] * learned_from + ids[learned_from:]
    return Encoded(ids, labels, 0)


def _tensors(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != "faults"}


@pytest.mark.parametrize("limit", [512, 39, 20])
def test_the_loss_is_the_mean_of_those_of_models_with_one_budget_each(limit: int) -> None:
    """M3's. The oracle is the model at each budget alone, on what the limit leaves of the longest."""
    model, samples = _model(), _samples()
    batch = _tensors(Collator(limit, BUDGETS[0], 56, BUDGETS[1:])(samples))
    counts = {len(each["learned"]) for each in (batch, *batch["budgets"])}
    assert len(counts) == 1, "a smaller budget learns the same labels"
    losses = []
    for place, tokens in enumerate(BUDGETS):
        alone = TinyLlavaForTraining(model.at_tokens(tokens))
        own = _tensors(Collator(limit, tokens, 56)(samples)) if limit == 512 else None
        given = batch if place == 0 else batch["budgets"][place - 1]
        inputs = {**given, "pixel_values": batch["pixel_values"]}
        inputs.pop("budgets", None)
        if own is not None:
            assert all(torch.equal(inputs[key], own[key]) for key in own)
        losses.append(alone(**inputs)["loss"])
    together = TinyLlavaForTraining(model)(**batch)["loss"]
    torch.testing.assert_close(together, torch.stack(losses).mean())


def test_every_budget_reaches_the_gradient() -> None:
    model = _model()
    batch = _tensors(Collator(512, BUDGETS[0], 56, BUDGETS[1:])(_samples()))
    TinyLlavaForTraining(model)(**batch)["loss"].backward()
    whole = model.connector[0].weight.grad.clone()  # type: ignore[index]
    parts = []
    for tokens in BUDGETS:
        model.zero_grad()
        own = _tensors(Collator(512, tokens, 56)(_samples()))
        TinyLlavaForTraining(model.at_tokens(tokens))(**own)["loss"].backward()
        parts.append(model.connector[0].weight.grad.clone())  # type: ignore[index]
    torch.testing.assert_close(whole, torch.stack(parts).mean(0))


def test_a_run_writes_a_checkpoint_with_its_budgets_and_resumes_as_the_same(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")  # mlp2x_gelu, of which token 0 is dropped
    data, out = write_own_data(tmp_path), tmp_path / "out"
    words = ["train", "--data", str(data), "--from", str(source), "-o", str(out), "--max-steps", "2"]
    done = CliRunner().invoke(app, [*words, "--budgets", "4,16", "--json"])
    assert done.exit_code == 0, done.output
    config = Checkpoint(out).config
    assert (config.connector.type, config.connector.budgets) == ("avg_pool", (16, 4))
    assert config.vision.select_strategy == "cls_patch"
    assert json.loads((out / "tinyllava_edge.json").read_text())["token_budgets"] == [16, 4]
    again = CliRunner().invoke(app, [*words, "--budgets", "16,4", "--resume"])
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budgets", "16,x"], "--budgets '16,x': expected numbers of visual tokens, as 729,81,9"),
        (["--budgets", "4,4"], "--budgets 4,4: expected different numbers"),
        (["--budgets", "0"], "--budgets 0: expected different numbers of visual tokens, each 1 or more"),
        (["--budgets", "8"], "never make 8 tokens, but 16, 4, 1"),
        (["--connector-factor", "2"], "--connector-factor is of a model from parts"),
    ],
)
def test_budgets_that_nobody_can_learn_are_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    source, data = write_tiny_checkpoint(tmp_path / "source"), write_own_data(tmp_path)
    given = ["train", "--data", str(data), "--from", str(source), "-o", str(tmp_path / "out"), *words]
    found = CliRunner().invoke(app, given)
    assert isinstance(found.exception, TinyLlavaEdgeError), found.output
    assert said in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_a_plan_counts_every_budget() -> None:
    options = FinetuneOptions(
        data=Path(), images=Path(), source=Path(), training=TrainingOptions(precision="fp32")
    )
    plans = [
        make_plan(_model(token_budgets=budgets).config, options, rows=None, positions=100)
        for budgets in ([16], list(BUDGETS))
    ]
    assert [plan.picture_positions for plan in plans] == [16, 16]
    assert plans[1].flops_per_conversation > 2.3 * plans[0].flops_per_conversation
    assert plans[1].memory_bytes["activations"] > 2 * plans[0].memory_bytes["activations"]
