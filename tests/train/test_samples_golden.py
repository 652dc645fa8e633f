"""Labels, loss and gradient norms of the golden checkpoints by the trainer, against upstream's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden import CHECKPOINT_NAMES, golden_checkpoint, shared_fixtures
from tests.train.own_data import loss_of
from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.prompt import place_markers, template_named
from tinyllava_edge.train.conversations import parse_record
from tinyllava_edge.train.data import PictureReader, encode_conversation, splice_labels
from tinyllava_edge.train.model import TinyLlavaForTraining
from tinyllava_edge.train.samples import Samples

LOSS, GRADIENT = 1e-5, 1e-4  # relative: the fixtures' own tolerances
NOISE = 1e-7  # a key's bias has no gradient but rounding
TRAINED = [
    name for name in CHECKPOINT_NAMES if not name.startswith("legacy")
]  # those classes were not trained


@pytest.mark.parametrize("name", TRAINED)
def test_labels_loss_and_gradients_are_upstreams(name: str, tmp_path: Path) -> None:
    folder, sources = golden_checkpoint(name), shared_fixtures() / "sources"
    golden = json.loads((folder / "golden.json").read_text())
    with np.load(folder / "golden.npz") as file:
        arrays = dict(file)
    source = Checkpoint(folder / "model", sources=sources, allow_pickle=True)
    model, assets = load_model(source), read_assets(source)
    num_tokens = golden["image_tokens"]
    for kind, facts in golden["labels"].items():
        assert not facts["upstream_warning"]
        turns = [(question, str(answer)) for question, answer in place_markers(facts["turns"])]
        if facts["template"] == "pretrain":
            turns = [(IMAGE_MARKER, turns[0][1])]
        ids, labels = encode_conversation(assets.text_tokenizer(), template_named(facts["template"]), turns)
        assert ids == arrays[f"labels/{kind}/input_ids"].tolist()
        assert labels == arrays[f"labels/{kind}/labels"].tolist()
        assert splice_labels(ids, labels, num_tokens) == arrays[f"labels/{kind}/spliced_labels"].tolist()
    if golden.get("train") is None:  # an identity connector, which has nothing to train
        assert not list(model.connector.parameters())
        return
    data, images = tmp_path / "data.json", shared_fixtures() / "images"
    samples = Samples(
        conversations={
            index: parse_record(record, index, data, images)
            for index, record in enumerate(golden["train"]["samples"])
        },
        tokenizer=assets.text_tokenizer(),
        template=template_named(model.config.template),
        reader=PictureReader(assets.preprocessing),
        limit=model.config.tokenizer_max_length,
        num_tokens=num_tokens,
    )
    loss = loss_of(TinyLlavaForTraining(model), samples.collator(list(samples)))
    assert loss.item() == pytest.approx(golden["train"]["loss"], rel=LOSS)
    loss.backward()  # type: ignore[no-untyped-call]
    check_gradients(model.connector, golden["train"])


def check_gradients(connector: torch.nn.Module, golden: dict[str, Any]) -> None:
    norms = {
        f"_connector.{name}": float(parameter.grad.norm())
        for name, parameter in connector.named_parameters()
        if parameter.grad is not None
    }
    assert norms.keys() == golden["connector_grad_norms"].keys()
    for key, expected in golden["connector_grad_norms"].items():
        assert norms[key] == pytest.approx(expected, rel=GRADIENT, abs=NOISE), key
    total = sum(value**2 for value in norms.values()) ** 0.5
    assert total == pytest.approx(golden["connector_grad_norm"], rel=GRADIENT)
