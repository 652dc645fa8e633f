"""Tokenizer files that are damaged or of another shape: one typed error that names the directory."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import TOKENIZER_FOLDER
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.tokenizer import read_tokenizer


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
