"""Labels against the original TinyLLaVA code's (golden_labels.json, from the golden fixtures)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import TOKENIZER_FOLDER
from tinyllava_edge.errors import PromptError
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.prompt import TextTokenizer, place_markers, template_named
from tinyllava_edge.train.conversations import parse_record
from tinyllava_edge.train.data import encode_conversation, splice_labels

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden_labels.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    assets = read_tokenizer(TOKENIZER_FOLDER)
    return TextTokenizer(assets.tokenizer_json, bos_id=assets.bos_id)


def _forms(turns: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """A conversation about a picture in the old form, as messages, and with the content in parts."""
    said = [text for turn in turns for text in turn]
    old = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
    new = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    parts = [
        {
            "role": message["role"],
            "content": [{"type": "image"}] * text.count("<image>")
            + [{"type": "text", "text": text.replace("<image>\n", "")}],
        }
        for message, text in zip(new, said, strict=True)
    ]
    pictures = ["a.png"] * sum(text.count("<image>") for text in said)
    return [
        {"image": pictures, "conversations": old},
        {"images": pictures, "messages": new},
        {"images": pictures, "messages": parts},
    ]


def test_a_system_text_stands_in_the_templates_place_and_is_not_learned(tokenizer: TextTokenizer) -> None:
    template = template_named("llama")
    ids, labels = encode_conversation(tokenizer, template.with_system("Be brief."), [("Hi", "Ho")])
    prompt = "Be brief. USER: Hi ASSISTANT:"  # upstream's slots, with another system text
    assert ids == tokenizer.encode_text(f"{prompt} Ho</s>")
    start = len(tokenizer.encode_text(prompt))
    assert labels == [-100] * start + ids[start:]
    with pytest.raises(PromptError, match="'pretrain' has no place for a system text"):
        template_named("pretrain").with_system("Be brief.")


@pytest.mark.parametrize("form", range(3))
@pytest.mark.parametrize(
    "golden",
    [g for g in GOLDEN if g["template"] != "pretrain"],
    ids=lambda g: f"{g['checkpoint']}-{g['name']}",
)
def test_each_form_of_a_record_has_the_original_trainers_labels(
    tokenizer: TextTokenizer, golden: dict[str, Any], form: int
) -> None:
    record = _forms(golden["turns"])[form]
    found = parse_record(record, 0, Path("my.json"), Path())
    ids, labels = encode_conversation(tokenizer, template_named(golden["template"]), found.turns)
    assert (ids, labels) == (golden["input_ids"], golden["labels"])


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['checkpoint']}-{g['name']}")
def test_ids_and_labels_equal_those_of_the_original_trainer(
    tokenizer: TextTokenizer, golden: dict[str, Any]
) -> None:
    turns = [(question, str(answer)) for question, answer in place_markers(golden["turns"])]
    ids, labels = encode_conversation(tokenizer, template_named(golden["template"]), turns)
    assert ids == golden["input_ids"]
    assert labels == golden["labels"]
    assert splice_labels(ids, labels, golden["num_tokens"]) == golden["spliced_labels"]
