"""What a grid says: its cells, their options, and what is refused before anything begins."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.benchmarks.ablate.own_grid import write_grid
from tests.command_lines import parse
from tests.test_cli import assert_one_line
from tinyllava_edge.benchmarks.ablate.grid import EVAL, TRAIN, read_grid, words
from tinyllava_edge.cli import app
from tinyllava_edge.errors import TinyLlavaEdgeError, UsageError
from tinyllava_edge.train.mix import draw, pair_files

ONE: dict[str, Any] = {"bool": True, "int": 3, "float": 0.5, "str": "x", "Path": "p", "list": ["p", "q"]}


def _value(kind: Any) -> Any:
    text = str(kind).replace("pathlib.", "")
    return next(ONE[name] for name in ("list", "bool", "int", "float", "str", "Path") if name in text)


@pytest.mark.parametrize(("command", "options"), [("train", TRAIN), ("eval nano", EVAL)])
def test_every_key_is_an_option_that_its_command_takes(command: str, options: Any) -> None:
    for key, (kind, _, off) in options.items():
        for value in (_value(kind), False):
            if value is not False or "bool" in str(kind):
                line = words(options, {key: value})
                assert line or not off
                parse([*command.split(), *line])


def test_a_grid_is_all_combinations_with_a_shared_stage_before(tmp_path: Path) -> None:
    grid = read_grid(write_grid(tmp_path), max_cells=4)
    assert [axes for axes, _ in grid.cells] == [
        {"learning_rate": rate, "fraction": share} for rate in ("0.001", "0.0001") for share in ("0.5", "1.0")
    ]
    assert len({str(stages[0]) for _, stages in grid.cells}) == 1
    first, second = grid.cells[0][1]
    assert (first["from"], first["tune"]) == (str(tmp_path / "source"), "connector")
    assert (second["mix"], second["learning_rate"]) == ("0.5", 1e-3)
    assert "from" not in second
    assert "mix" not in grid.cells[1][1][1]


def test_a_value_may_be_several_options_and_a_stage_an_axis(tmp_path: Path) -> None:
    base = {"from": None, "tower": "source", "llm": "owner/name", "pretrain": None, "recipe": "lora"}
    axes = {
        "connector": ["linear", {"connector": "resampler", "num_queries": 9}],
        "pretrain": [None, {"recipe": "base-pretrain"}],
        "learning_rate": [1e-3],
        "fraction": [1],
    }
    cells = read_grid(write_grid(tmp_path, base=base, axes=axes), max_cells=4).cells
    assert cells[3][0]["connector"] == "resampler num_queries=9"
    assert [len(stages) for _, stages in cells] == [1, 2, 1, 2]
    pretrain, finetune = cells[3][1]
    assert (pretrain["tower"], pretrain["llm"]) == (str(tmp_path / "source"), "owner/name")
    assert (pretrain["num_queries"], pretrain["recipe"], finetune["recipe"]) == (9, "base-pretrain", "lora")
    assert not finetune.keys() & {"tower", "llm", "connector", "num_queries"}


def test_a_seed_is_given_where_the_grid_has_one(tmp_path: Path) -> None:
    """Else a recipe's own counts."""
    for base, seeds in ({"recipe": "lora"}, []), ({"recipe": "lora", "seed": 3}, ["3"]):
        for stage in read_grid(write_grid(tmp_path, base=base), max_cells=4).cells[0][1]:
            assert [value for name, value in pairwise(words(TRAIN, stage)) if name == "--seed"] == seeds


def test_what_a_checkpoint_is_read_with_is_of_the_first_stage(tmp_path: Path) -> None:
    base = {"sources": "source", "allow_pickle": True}
    first, second = read_grid(write_grid(tmp_path, base=base), max_cells=4).cells[0][1]
    assert (first["sources"], first["allow_pickle"]) == (str(tmp_path / "source"), True)
    assert not second.keys() & base.keys()


def test_a_smaller_fraction_lies_within_a_larger_one(tmp_path: Path) -> None:
    axes = {"learning_rate": [1e-3], "fraction": [0.1, 0.3, 1.0]}
    base = {"data": ["a.json", "b.json"], "mix": "1,0.5"}
    drawn = []
    for _, (_, options) in read_grid(write_grid(tmp_path, base=base, axes=axes), max_cells=9).cells:
        files = pair_files([Path(path) for path in options["data"]], [], options["mix"])
        drawn.append(set(draw(files, [1000, 600], 0).tolist()))
    assert [len(numbers) for numbers in drawn] == [130, 390, 1300]
    assert drawn[0] < drawn[1] < drawn[2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": {"learning_rat": 1}}, "base.learning_rat: no such key. Did you mean 'learning_rate'?"),
        ({"base": {"batch_size": "many"}}, "base.batch_size: Input should be a valid integer"),
        ({"base": {"pretrain": {"tun": "all"}}}, "base.pretrain.tun: no such key. Did you mean 'tune'?"),
        ({"axes": {"conector": ["linear"]}}, "axes.conector: no such key. Did you mean 'connector'?"),
        ({"axes": {"seed": []}}, "0 cells: axes.seed has no value"),
        (
            {"axes": {"seed": [*range(30)]}},
            "120 cells (2 learning_rate x 2 fraction x 30 seed), expected 100",
        ),
        ({"axes": {"seed": [1, 1]}}, "is there twice"),
        (
            {"axes": {"fraction": [0.5, 2]}},
            "axes.learning_rate 0.001, axes.fraction 2: fraction: Input should",
        ),
        ({"axes": {"tune": [{"tune": "all", "epoch": 1}]}}, "epoch: no such key. Did you mean 'epochs'?"),
        ({"base": {"mix": "a"}}, "fraction 0.5 is of `data`, with numbers in `mix`"),
        ({"eval": {"max_tokens": 0}}, "eval.max_tokens: Input should be greater than or equal to 1, found 0"),
        ({"eval": {"question": "q"}}, "eval.question: no such key. Did you mean 'questions'?"),
    ],
)
def test_what_is_no_grid_is_refused_by_its_place(tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_grid(write_grid(tmp_path, **changes), max_cells=100)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_in_the_way_or_not_yaml_is_refused(tmp_path: Path) -> None:
    grid, mine = write_grid(tmp_path), tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.md").write_text("mine")
    for arguments, said in (
        ([], "give -o FOLDER"),
        (["-o", str(tmp_path / "source" / "x")], "source, which this command reads"),
        (["-o", str(mine), "--resume"], "mine: exists already, with no ablation in it"),
        (["--plan", "--max-cells", "3"], "4 cells (2 learning_rate x 2 fraction), expected 3 at most"),
    ):
        result = CliRunner().invoke(app, ["ablate", str(grid), *arguments])
        assert isinstance(result.exception, TinyLlavaEdgeError)
        assert said in str(result.exception)
    grid.write_text("base: [")
    assert_one_line("ablate", grid, "--plan", named=("not the YAML",))
