"""Token ids of every family against the slow tokenizers' (slow_ids.json; make_slow_ids.py wrote it)."""

import json
from pathlib import Path

import pytest

from tests.golden import shared_fixtures
from tests.model.make_slow_ids import FOLDERS, texts
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.prompt import TextTokenizer

EXPECTED = json.loads((Path(__file__).parent / "slow_ids.json").read_text())


@pytest.mark.parametrize("family", FOLDERS)
def test_ids_equal_the_slow_tokenizer(family: str) -> None:
    folder = shared_fixtures() / FOLDERS[family]
    if not folder.is_dir():
        pytest.skip(f"the vocabulary of {family} is not at {folder}: too large to be copied here")
    assets = read_tokenizer(folder)
    tokenizer = TextTokenizer(assets.tokenizer_json, bos_id=assets.bos_id if assets.adds_bos else None)
    wrong = {
        text: (found, expected)
        for text, expected in zip(texts(), EXPECTED[family], strict=True)
        if (found := tokenizer.encode_text(text)) != expected
    }
    assert not wrong
