"""Labels against the original TinyLLaVA code's (golden_labels.json, from the golden fixtures)."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import TOKENIZER_FOLDER
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.prompt import TextTokenizer, place_markers, template_named
from tinyllava_edge.train.data import encode_conversation, splice_labels

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden_labels.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    assets = read_tokenizer(TOKENIZER_FOLDER)
    return TextTokenizer(assets.tokenizer_json, bos_id=assets.bos_id)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['checkpoint']}-{g['name']}")
def test_ids_and_labels_equal_those_of_the_original_trainer(
    tokenizer: TextTokenizer, golden: dict[str, Any]
) -> None:
    turns = [(question, str(answer)) for question, answer in place_markers(golden["turns"])]
    ids, labels = encode_conversation(tokenizer, template_named(golden["template"]), turns)
    assert ids == golden["input_ids"]
    assert labels == golden["labels"]
    assert splice_labels(ids, labels, golden["num_tokens"]) == golden["spliced_labels"]
