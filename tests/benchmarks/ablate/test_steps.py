"""The key of a step: it changes with what decides the result, and with nothing else."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.ablate.own_grid import GRID, write_grid
from tests.train.own_data import write_own_data
from tinyllava_edge.benchmarks.ablate import steps
from tinyllava_edge.benchmarks.ablate.grid import read_grid
from tinyllava_edge.errors import TinyLlavaEdgeError

Keys = tuple[str, str, str]


def _keys(grid: Path) -> Keys:
    """Of the first cell: of its first stage, its second one and its score."""
    steps._content.cache_clear()
    steps._data.cache_clear()
    cell = steps.plan_cells(read_grid(grid, max_cells=100))[0]
    first, second = cell.training.stages
    return first.key, second.key, cell.key


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, 3),
        ({"base": {"workers": 2, "save_every": 7, "threads": 2}}, 3),
        ({"axes": {"learning_rate": [1e-3]}}, 3),
        ({"eval": {"max_tokens": 3}}, 2),
        ({"base": {"epochs": 2}}, 1),
        ({"axes": {"fraction": [0.6]}}, 1),
        ({"base": {"seed": 1}}, 0),
        ({"base": {"pretrain": {**GRID["base"]["pretrain"], "max_steps": 2}}}, 0),
    ],
)
def test_options_change_the_keys_of_what_they_decide(tmp_path: Path, changes: Any, same: int) -> None:
    before = _keys(write_grid(tmp_path))
    after = _keys(write_grid(tmp_path, **changes)) if changes else _keys(tmp_path / "grid.yaml")
    assert [a == b for a, b in zip(before, after, strict=True)] == [place < same for place in range(3)]


@pytest.mark.parametrize(
    ("name", "same"),
    [
        *(("questions.json", 2), ("data.json", 0), ("source/model.safetensors", 0), ("1.png", 0)),
        *(("notes.md", 3), ("source/README.md", 3), ("sources/tokenizer.json", 0)),
        *(("validation.json", 1), ("seen/1.png", 1)),
    ],
)
def test_files_change_the_keys_of_what_they_decide(tmp_path: Path, name: str, same: int) -> None:
    for folder in ("sources", "seen"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sources" / "tokenizer.json").write_text("[1, 2]")
    write_own_data(tmp_path / "seen")
    (tmp_path / "seen" / "data.json").rename(tmp_path / "validation.json")
    base = {"sources": "sources", "eval_data": "validation.json", "eval_images": "seen"}
    grid = write_grid(tmp_path, base=base)
    before = _keys(grid)
    path = tmp_path / name
    if name.endswith(".json"):
        path.write_text(json.dumps(json.loads(path.read_text())[:-1]))
    elif name.endswith(".png"):
        os.utime(path, (1, 1))
    else:
        path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")
    after = _keys(grid)
    assert [a == b for a, b in zip(before, after, strict=True)] == [place < same for place in range(3)]


def test_what_a_recipe_starts_from_changes_the_keys(tmp_path: Path) -> None:
    own = {"summary": "x", "starts": "parts", "tower": str(tmp_path / "tower"), "tune": {"connector": "full"}}
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    for part, config in (("tower", {}), ("llm", {"model_type": "phi"})):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    base = {"from": None, "llm": "llm", "pretrain": {"recipe": "own.yaml", "data": "data.json"}}
    grid = write_grid(tmp_path, base=base)
    before = _keys(grid)
    (tmp_path / "tower" / "config.json").write_text("{} ")
    assert not set(_keys(grid)) & set(before)


def test_keys_do_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    write_own_data(tmp_path)
    base = {"sources": "source", "eval_data": "data.json", "eval_images": "."}
    before = _keys(write_grid(tmp_path, base=base))
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    assert _keys(moved / "grid.yaml") == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": {"from": "nowhere"}}, "from nowhere: no such directory"),
        ({"base": {"from": None}}, "nothing to start from"),
        ({"base": {"data": "no.json"}}, "no.json: cannot be read"),
        ({"base": {"data": None}, "axes": {"fraction": [1.0]}}, "no data"),
        ({"base": {"recipe": "lor"}}, "--recipe 'lor' is not known. Did you mean 'lora'?"),
        ({"base": {"template": "nope"}}, "'nope'"),
        ({"base": {"tune": "tower"}}, "--tune 'tower' is not known"),
        ({"eval": {"language": "q9"}}, "--language 'q9' is not known"),
        ({"eval": {"runtime": "nope"}}, "there is no runtime 'nope'"),
        ({"eval": {"images": None}}, "expected `questions` and `images`, or `benchmark` and `data`"),
        ({"eval": {"questions": "no.json"}}, "no.json"),
    ],
)
def test_what_is_missing_is_said_before_anything_begins(tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(TinyLlavaEdgeError) as refused:
        _keys(write_grid(tmp_path, **changes))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
