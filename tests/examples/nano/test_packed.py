"""Several conversations about one picture in one row, against each of them alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.nano.packed import Labelled, pack, packed_loss
from examples.nano.questions import Turns
from tests.tiny import TOKENIZER_FOLDER, write_tiny_checkpoint
from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.model.vlm import TinyLlava, load_model
from tinyllava_edge.prompt import TextTokenizer, label_answers, place_markers, template_named

GOLDEN_FILE = Path(__file__).parents[2] / "train" / "golden_labels.json"  # of the original TinyLLaVA code
GOLDEN: list[dict[str, Any]] = json.loads(GOLDEN_FILE.read_text())
ROWS: list[list[Turns]] = [
    [
        (("<image>\nWhat is this?", "A small cat."),),
        (("<image>\nIs it red?", "No."), ("Sure?", "Yes, it is a black cat.")),
        (("<image>\nWhich kind of thing is this?", "mammal"),),
    ],
    [(("<image>\nWhat?", "bird"),)],
]


def _summed_loss(model: TinyLlava, encoded: Labelled, picture: torch.Tensor) -> torch.Tensor:
    """Of one conversation by itself: what stands before each labelled id predicts it."""
    ids, labels = encoded
    rows = model.splice(ids, model.encode(picture[None]))
    scores = model.language_model(inputs_embeds=rows[None]).logits[0].log_softmax(-1)
    behind = [index - len(ids) for index, label in enumerate(labels) if label >= 0]  # the picture is before
    return -torch.stack([scores[index - 1, labels[index]] for index in behind]).sum()


def test_the_loss_is_that_of_every_conversation_by_itself(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny")
    model = load_model(Checkpoint(checkpoint))
    assets = read_assets(Checkpoint(checkpoint))
    pixels = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokenizer = assets.text_tokenizer()
    rows = [[label_answers(tokenizer, assets.template, turns) for turns in row] for row in ROWS]
    packed = pack(rows, pixels)
    weight = next(model.connector.parameters())
    (gradient,) = torch.autograd.grad(packed_loss(model, packed), weight)

    flat = [(encoded, pixels[index]) for index, row in enumerate(rows) for encoded in row]
    count = sum(label >= 0 for row in rows for _, labels in row for label in labels)
    expected = torch.stack([_summed_loss(model, *sample) for sample in flat]).sum() / count
    assert packed_loss(model, packed).item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, weight)[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['checkpoint']}-{g['name']}")
def test_labels_equal_those_of_the_original_trainer(golden: dict[str, Any]) -> None:
    assets = read_tokenizer(TOKENIZER_FOLDER)
    tokenizer = TextTokenizer(assets.tokenizer_json, bos_id=assets.bos_id)
    turns = tuple((question, str(answer)) for question, answer in place_markers(golden["turns"]))
    if golden["template"] == "pretrain":
        turns = ((IMAGE_MARKER, turns[0][1]),)  # as `caption` asks
    ids, labels = label_answers(tokenizer, template_named(golden["template"]), turns)
    assert (ids, labels) == (golden["input_ids"], golden["labels"])
