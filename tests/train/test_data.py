"""Labels against the original TinyLLaVA code's (golden_labels.json, from the golden fixtures)."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import TOKENIZER_FOLDER
from tinyllava_edge.errors import DataError, RecordError
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.prompt import TextTokenizer, place_markers, template_named
from tinyllava_edge.train.data import (
    Conversation,
    encode_conversation,
    parse_record,
    read_list,
    splice_labels,
)

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


def _record(image: str | None, *values: str) -> dict[str, Any]:
    messages = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "x", "conversations": messages} | ({"image": image} if image else {})


def _parse(record: object) -> Conversation:
    return parse_record(record, 3, Path("my.json"), Path("photos"))


def test_conversations_keep_their_turns_and_place_the_marker_first() -> None:
    first = _parse(_record("a.png", "What? <image>", "A cat.", "Sure?", "Yes."))
    assert first.picture == Path("photos", "a.png")
    assert first.turns == (("<image>\nWhat?", "A cat."), ("Sure?", "Yes."))
    assert first.where == "my.json: record 3 (id x)"
    second = _parse(_record(None, "Hi", "Ho"))
    assert second.picture is None
    assert second.turns == (("Hi", "Ho"),)
    assert _parse({"conversations": _record(None, "Hi", "Ho")["conversations"]}).id == "3"


@pytest.mark.parametrize("speaker", ["gpt", "system"])
def test_a_first_message_that_is_no_question_is_skipped_as_upstream_does(speaker: str) -> None:
    record = _record(None, "Hi", "Ho")
    record["conversations"].insert(0, {"from": speaker, "value": "Welcome"})
    assert _parse(record).turns == (("Hi", "Ho"),)


HUMAN, GPT = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}
BAD: list[tuple[object, str, str]] = [
    ("text", "malformed record", "str, expected an object"),
    (None, "malformed record", "NoneType"),
    ({"id": "x"}, "malformed record", r"conversations is missing .*found keys: id"),
    ({"messages": [{"role": "user", "content": "a"}]}, "malformed record", "found keys: messages"),
    ({"conversations": {}}, "malformed record", "conversations is missing"),
    ({"conversations": ["a", "b"]}, "malformed record", "conversations is missing"),
    (_record(None), "malformed record", "0 messages"),
    (_record(None, "only a question"), "malformed record", "1 messages"),
    ({"conversations": [HUMAN, HUMAN]}, "malformed record", "message 1"),
    ({"conversations": [HUMAN, {"from": "gpt"}]}, "malformed record", "message 1"),
    ({"conversations": [HUMAN, {"from": "gpt", "value": ["b"]}]}, "malformed record", "message 1"),
    ({"conversations": [{"from": "user", "value": "a"}, GPT]}, "unknown role", "'user', expected 'human'"),
    ({"conversations": [HUMAN, {"from": "assistant", "value": "b"}]}, "unknown role", "'assistant'"),
    ({"conversations": [HUMAN, {"from": "", "value": "b"}]}, "unknown role", "from ''"),
    ({"conversations": [HUMAN, {"value": "b"}]}, "unknown role", "from None"),
    ({"conversations": [HUMAN, {"from": ["gpt"], "value": "b"}]}, "unknown role", "gpt"),
    ({"image": ["a.png"], "conversations": [HUMAN, GPT]}, "malformed record", "image is .*one path"),
    ({"image": 7, "conversations": [HUMAN, GPT]}, "malformed record", "image is 7"),
    (
        {"video": "x.mp4", "conversations": [HUMAN, GPT]},
        "unread media",
        "'video', which is not read",
    ),
    ({"images": ["a.png"], "conversations": [HUMAN, GPT]}, "unread media", "'images'"),
    (_record(None, "<image>\nWhat?", "A cat."), "picture markers", "0 picture"),
    (_record("a.png", "Read <image>", "It says <image>"), "picture markers", "2 <image>"),
    (_record("a.png", "<image>\nA?", "B.", "<image>\nC?", "D."), "picture markers", "2 <image>"),
]


@pytest.mark.parametrize(("record", "kind", "reason"), BAD)
def test_a_bad_record_is_refused_with_its_kind(record: object, kind: str, reason: str) -> None:
    with pytest.raises(RecordError, match=reason) as caught:
        _parse(record)
    assert caught.value.kind == kind


@pytest.mark.parametrize("content", ["{}", "[]", '"text"', "1"])
def test_a_file_without_a_list_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(DataError, match="list of objects"):
        read_list(tmp_path / "data.json")


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_list(tmp_path / "data.json")
    (tmp_path / "data.json").write_bytes(b"\xff\xfe[")
    with pytest.raises(DataError, match="not valid JSON"):
        read_list(tmp_path / "data.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_list(tmp_path / "absent.json")
