"""Tokenizer files that are damaged or of another shape: one typed error that names the directory."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.tiny import TOKENIZER_FOLDER
from tinyllava_edge.checkpoint.files import tokenizer_length
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.prompt import TextTokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TOKENIZER_FOLDER, tmp_path / "tokenizer"))


def assert_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_whole_one_is_read(folder: Path) -> None:
    assert read_tokenizer(folder).adds_bos


def test_an_additional_token_without_an_id_is_refused(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"additional_special_tokens": ["<image>"]}))
    with pytest.raises(
        CheckpointError, match=r"tokenizer_config\.json: additional_special_tokens has '<image>'"
    ):
        read_tokenizer(folder)


@pytest.mark.parametrize("kept", [0, 1, 100, 3000, -1])
def test_a_truncated_model_is_refused(folder: Path, kept: int) -> None:
    path = folder / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused(folder)


def test_a_changed_model_is_a_tokenizer_or_refused(folder: Path) -> None:
    path = folder / "tokenizer.model"
    data = path.read_bytes()
    chance = random.Random(0)
    for _ in range(100):
        changed = bytearray(data)
        changed[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            read_tokenizer(folder)
        except CheckpointError as error:
            assert str(folder) in str(error)  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("added_tokens_decoder", [1]),
        ("added_tokens_decoder", {"five": {"content": "x"}}),
        ("added_tokens_decoder", {"5": 1}),
        ("added_tokens_decoder", {"5": {}}),
        ("added_tokens_decoder", {"999999": {"content": "x"}}),
        ("bos_token", 1),
        ("bos_token", "<not in the vocabulary>"),
    ],
)
def test_a_setting_of_another_shape_is_refused(folder: Path, key: str, value: Any) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {key: value}))
    assert_refused(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_json_file_of_another_shape_is_refused(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    assert_refused(folder)


def test_an_added_token_without_an_id_is_refused(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"extra": {}}')
    assert_refused(folder)


@pytest.mark.parametrize("content", ["", "{}", "null", '{"version": "1.0"}'])
def test_a_damaged_tokenizer_json_is_refused(folder: Path, content: str) -> None:
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_text(content)
    assert_refused(folder)


def test_a_folder_without_any_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path)


def test_a_role_that_two_files_give_to_other_tokens_is_refused(folder: Path) -> None:
    path = folder / "special_tokens_map.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "<s>"}))
    with pytest.raises(
        CheckpointError, match=r"special_tokens_map.json: eos_token is '<s>', tokenizer_config"
    ):
        read_tokenizer(folder)


def test_an_id_that_two_files_give_to_other_tokens_is_refused(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"<other>": 2}')
    with pytest.raises(CheckpointError, match=r"added_tokens.json: '<other>' has id 2"):
        read_tokenizer(folder)


def byte_level(folder: Path, settings: dict[str, Any]) -> Path:
    """A tiny vocabulary of bytes with `<image>` in added_tokens.json alone."""
    folder.mkdir()
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    vocabulary = {letter: index for index, letter in enumerate([*letters, "\u0120", "<end>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "added_tokens.json").write_text(json.dumps({"<image>": len(vocabulary)}))
    roles = {f"{role}_token": "<end>" for role in ("bos", "eos", "unk", "pad")}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", **roles, **settings})
    )
    return folder


@pytest.mark.parametrize("counts", [False, True])
def test_added_tokens_json_counts_as_it_does_for_transformers(
    tmp_path: Path, counts: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    end = {"content": "<end>", "special": True, "normalized": False}
    decoder = {} if counts else {"added_tokens_decoder": {"189": end}}
    folder = byte_level(tmp_path / "tokenizer", decoder)
    theirs = AutoTokenizer.from_pretrained(folder)
    found = Tokenizer.from_str(read_tokenizer(folder).tokenizer_json)
    assert found.get_vocab_size() == len(theirs) == 190 + counts
    assert tokenizer_length(folder) == 190 + counts
    assert ("'<image>' is no token here" in capsys.readouterr().err) is not counts


def change_model(folder: Path, change: Callable[[Any], object]) -> None:
    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # generated, untyped
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    change(proto)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda proto: setattr(proto.trainer_spec, "bos_id", 420), "its BOS id 420 is no control token"),
        (lambda proto: setattr(proto.trainer_spec, "bos_id", -1), "its BOS id -1 is no control token"),
        (lambda proto: setattr(proto.trainer_spec, "bos_id", 300), "its BOS id 300 is no control token"),
        (lambda proto: setattr(proto.pieces[300], "piece", proto.pieces[301].piece), "is there twice"),
        (lambda proto: setattr(proto.pieces[300], "piece", ""), "piece 300 has 0 characters"),
        (lambda proto: setattr(proto.pieces[300], "piece", "a" * 100_000), "piece 300 has 100000 characters"),
        (lambda proto: setattr(proto.pieces[300], "score", float("nan")), "has the score nan"),
        (lambda proto: setattr(proto.pieces[300], "type", 2), "expected a SentencePiece model of kind BPE"),
        (lambda proto: proto.ClearField("pieces"), "expected a SentencePiece model of kind BPE"),
    ],
)
def test_a_sentencepiece_model_that_lies_is_named(
    folder: Path, change: Callable[[Any], object], named: str
) -> None:
    change_model(folder, change)
    with pytest.raises(CheckpointError, match=f"tokenizer.model: .*{named}"):
        read_tokenizer(folder)


@pytest.fixture
def merges(tmp_path: Path) -> Path:
    """Two merges over a vocabulary of five."""
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\r\na b\r\nab c\r\n")
    return tmp_path


def test_merges_are_read(merges: Path) -> None:
    tokenizer = TextTokenizer(read_tokenizer(merges).tokenizer_json, bos_id=None)
    assert tokenizer.encode_text("abcab") == [4, 3]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("merges.txt", b"a b\nab d\n", "needs 'd', which is not in the vocabulary"),
        ("merges.txt", b"b c\n", "needs 'bc', which is not in the vocabulary"),
        ("merges.txt", b"a b c\n", "needs 'b c'"),
        ("merges.txt", b"\xff\xfe\n", "merges.txt: not UTF-8"),
        ("vocab.json", b'{"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 3}', "both have id 3"),
        ("vocab.json", b'{"a": 0, "b": 1, "c": 2, "ab": 3, "abc": -1}', "'abc' has id -1"),
        ("vocab.json", b'{"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 99999999999}', "'abc' has id 99999999999"),
        ("vocab.json", b'{"a": 0, "b": 1, "c": 2, "ab": 3, "abc": "4"}', "'abc' has id '4'"),
        ("vocab.json", b'{"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "abc": 5}', "'abc' is there twice"),
        ("vocab.json", '{"a": 0}'.encode("utf-16"), "not valid JSON"),
    ],
)
def test_a_vocabulary_and_merges_that_do_not_fit_are_named(
    merges: Path, name: str, content: bytes, named: str
) -> None:
    (merges / name).write_bytes(content)
    assert_refused(merges)
    with pytest.raises(CheckpointError, match=named):
        read_tokenizer(merges)
