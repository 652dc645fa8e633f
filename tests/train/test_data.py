"""Labels against the original TinyLLaVA code's (golden_labels.json, from the golden fixtures)."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tiny import TOKENIZER_FOLDER
from tinyllava_edge.errors import DataError
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.prompt import TextTokenizer, place_markers, template_named
from tinyllava_edge.train.data import encode_conversation, read_conversations, splice_labels

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


def _write(folder: Path, records: object) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return path


def _record(image: str | None, *values: str) -> dict[str, Any]:
    messages = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "x", "conversations": messages} | ({"image": image} if image else {})


def test_conversations_keep_their_turns_and_place_the_marker_first(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    path = _write(
        tmp_path, [_record("a.png", "What? <image>", "A cat.", "Sure?", "Yes."), _record(None, "Hi", "Ho")]
    )
    first, second = read_conversations(path, tmp_path)
    assert first.picture == tmp_path / "a.png"
    assert first.turns == (("<image>\nWhat?", "A cat."), ("Sure?", "Yes."))
    assert second.picture is None
    assert second.turns == (("Hi", "Ho"),)


def test_a_first_message_of_the_model_is_skipped_as_upstream_does(tmp_path: Path) -> None:
    record = _record(None, "Hi", "Ho")
    record["conversations"].insert(0, {"from": "gpt", "value": "Welcome"})
    assert read_conversations(_write(tmp_path, [record]), tmp_path)[0].turns == (("Hi", "Ho"),)


def test_missing_pictures_are_counted_and_listed_before_any_work(tmp_path: Path) -> None:
    records = [_record(f"{i}.png", "<image>\nWhat?", "A.") for i in range(12)]
    with pytest.raises(DataError, match=r"12 pictures are missing .*: 0.png, 1.png, .*9.png, \.\.\."):
        read_conversations(_write(tmp_path, records), tmp_path)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({}, "list of objects"),
        ([], "list of objects"),
        ([{"id": "x"}], "conversations is missing"),
        ([_record(None, "only a question")], "1 messages"),
        (
            [{"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]}],
            "message 1",
        ),
        ([_record(None, "<image>\nWhat?", "A cat.")], "marker"),
    ],
)
def test_malformed_data_are_refused_with_the_record_named(
    tmp_path: Path, records: object, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_conversations(_write(tmp_path, records), tmp_path)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_conversations(tmp_path / "data.json", tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_conversations(tmp_path / "absent.json", tmp_path)
