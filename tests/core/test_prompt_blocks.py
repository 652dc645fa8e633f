"""Blocks of a tokenizer.json that change ids in silence: the library obeys them, upstream does not."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.tiny import TOKENIZER_FOLDER
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.prompt import TextTokenizer, template_named

TRUNCATION = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 64},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<unk>",
}
BLOCKS: list[dict[str, Any]] = [
    {"truncation": TRUNCATION},
    {"truncation": {**TRUNCATION, "direction": "Left"}},
    {"padding": PADDING},
    {"padding": {**PADDING, "strategy": "BatchLongest", "pad_to_multiple_of": 8, "direction": "Left"}},
    {"truncation": TRUNCATION, "padding": PADDING},
]
LONG = " ".join(f"picture {number}" for number in range(800))


def with_blocks(blocks: dict[str, Any]) -> str:
    return json.dumps({**json.loads(read_tokenizer(TOKENIZER_FOLDER).tokenizer_json), **blocks})


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("text", ["hi", LONG], ids=len)
def test_ids_are_those_of_transformers(blocks: dict[str, Any], text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(with_blocks(blocks))
    fast: Any = PreTrainedTokenizerFast
    upstream = fast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    expected = upstream(text, add_special_tokens=False).input_ids
    ours = TextTokenizer(with_blocks(blocks), bos_id=None)
    assert ours.encode_text(text) == expected
    template = template_named("llama")
    (prompt,) = {tuple(ours.encode(template, [(text, None)], honour_special=how)) for how in (True, False)}
    assert list(prompt) == upstream(template.render([(text, None)]), add_special_tokens=False).input_ids


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_what_is_exported_has_none(blocks: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(with_blocks(blocks))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    assets = read_tokenizer(tmp_path)
    exported = json.loads(assets.tokenizer_json)
    assert (exported["truncation"], exported["padding"], assets.adds_bos) == (None, None, True)


def test_merges_are_never_dropped() -> None:
    raw = json.loads(read_tokenizer(TOKENIZER_FOLDER).tokenizer_json)
    ids = TextTokenizer(json.dumps(raw), bos_id=None).encode_text(LONG)
    raw["model"]["dropout"] = 0.5
    assert TextTokenizer(json.dumps(raw), bos_id=None).encode_text(LONG) == ids
