"""Shards of an evaluation, their answers merged, two files compared; on nano, and by property."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from tests.benchmarks.evals.conftest import Run
from tinyllava_edge.benchmarks.evals.question import Question, Record
from tinyllava_edge.benchmarks.evals.shards import parse_shard, shard_of
from tinyllava_edge.cli import app
from tinyllava_edge.errors import DataError, UsageError


def record(place: int, picture: int | None) -> Record:
    if picture == -1:
        return DataError(f"record {place}")
    image = None if picture is None else Path(f"{picture}.jpg")
    return (Question(id=place, image=image, text="?", answers=(), type="all", record=place),)


@given(st.lists(st.one_of(st.none(), st.integers(-1, 6)), min_size=1, max_size=30), st.integers(1, 7))
def test_shards_are_disjoint_whole_pictures_and_complete(pictures: list[int | None], of: int) -> None:
    records = [record(place, picture) for place, picture in enumerate(pictures)]
    turns = len({picture for picture in pictures if picture not in (None, -1)}) + sum(
        picture in (None, -1) for picture in pictures
    )
    if of > turns:
        with pytest.raises(UsageError, match=f"there are {turns} pictures"):
            shard_of(records, 1, of)
        return
    shards = [shard_of(records, number, of) for number in range(1, of + 1)]
    for place, whole in enumerate(records):
        assert [shard[place] for shard in shards if shard[place] != ()] == [whole]
    sizes = [
        len({q.picture_key for r in shard if isinstance(r, tuple) for q in r if q.image is not None})
        for shard in shards
    ]
    assert max(sizes) - min(sizes) <= 1 or None in pictures or -1 in pictures
    for shard in shards:
        kept = {r[0].image for r in shard if isinstance(r, tuple) and r} - {None}
        left = {r[0].image for r, s in zip(records, shard, strict=True) if s == () and isinstance(r, tuple)}
        assert not kept & left


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_shard_out_of_range_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=f"--shard {text}: expected I/N with I from 1 to N"):
        parse_shard(text)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven questions about four pictures, one of which is damaged."""
    records: list[dict[str, Any]] = []
    for number, name in enumerate(("a", "b", "a", "c", "d", "c", "b")):
        Image.new("RGB", (32, 32), (60 * number % 255, 90, 200)).save(tmp_path / f"{name}.png")
        text = ("What is this?", "Is it an animal?", "Is it blue?")[number % 3]
        records.append(
            {"id": number, "image": f"{name}.png", "question": text, "answer": "yes", "type": name}
        )
    (tmp_path / "d.png").write_bytes(b"no picture")
    (tmp_path / "q.json").write_text(json.dumps(records))
    return tmp_path


def test_merged_shards_are_the_whole(run: Run, data: Path) -> None:
    asked = ("--questions", data / "q.json", "--images", data, "--json")
    code, out, _ = run(*asked, "--answers", data / "whole.jsonl")
    assert code == 1  # for the damaged one
    for number in (1, 2):
        code, part, err = run(
            *asked, "--answers", data / f"part{number}.jsonl", "--shard", f"{number}/2", "--skip-bad"
        )
        assert code == 0, err
        assert json.loads(part)["shard"] == f"{number}/2"
    both = ("--merge", data / "part1.jsonl", "--merge", data / "part2.jsonl")
    code, merged, err = run(*asked, *both, "--answers", data / "merged.jsonl")
    assert (code, json.loads(merged)) == (1, json.loads(out)), err
    for name in ("whole", "merged"):  # the second file is of the blind pass
        assert len(list(data.glob(f"{name}*.jsonl"))) == 2
    for path in data.glob("whole*.jsonl"):
        assert (data / path.name.replace("whole", "merged")).read_bytes() == path.read_bytes()
    seen = json.loads(run(*asked, *both, "--no-blind")[1])
    assert (seen["blind"], seen["blind_accuracy"], seen["blind_types"]) == (False, None, {})
    assert seen["accuracy"] == json.loads(out)["accuracy"]
    for files, said in (
        (both[:2], "3 of 7 questions have no answer of"),
        ((*both, *both[:2]), "answers are there twice"),
        (("--merge", data / "none.jsonl"), "none.jsonl: cannot be read"),
        (("--merge", data / "q.json"), "q.json: holds no line that is an answer of eval"),
        ((*both, "--shard", "1/2"), "--merge takes answers of the whole"),
    ):
        code, _, err = run(*asked, *files)
        assert (code, said in err, err.count("\n")) == (2, True, 1), err
    for made, said in (
        ({"max_tokens": 9}, "was asked with --max-tokens 9, and this is for 4"),
        ({"bundle": "f" * 64}, "holds answers of another bundle, of manifest ffffffffffff...; this one's"),
    ):
        lines = [json.loads(line) for line in (data / "part2.jsonl").read_text().splitlines()]
        for line in lines:
            line["metadata"]["made_with"] |= made
        (data / "part2.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        code, _, err = run(*asked, *both)
        assert (code, f"part2.jsonl: {said}" in err, err.count("\n")) == (2, True, 1), err


def answer_file(
    path: Path, rights: list[float], pictures: int, *, rule: str = "exact", first_id: int = 0
) -> Path:
    lines = [
        {
            "question_id": first_id + number,
            "prompt": "?",
            "text": f"answer {right}",
            "metadata": {
                "type": "all",
                "expected": "x",
                "rule": rule,
                "right": bool(right) if right in (0, 1) else right,
                "picture_sha256": f"{number % pictures:064}",
            },
        }
        for number, right in enumerate(rights)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def compare(*arguments: Path | str) -> Any:
    return CliRunner().invoke(app, ["eval", "compare", *map(str, arguments)])


def test_two_files_are_compared_question_by_question(tmp_path: Path) -> None:
    first = answer_file(tmp_path / "a.jsonl", [1, 1, 1, 1, 0, 0, 0.5, 1], 4)
    other = answer_file(tmp_path / "b.jsonl", [1, 0, 0, 1, 1, 0, 0.25, 0], 4)
    found = json.loads(compare(first, other, "--json").stdout)
    assert (found["questions"], found["images"], found["rule"]) == (8, 4, "exact")
    assert (found["first"]["accuracy"], found["other"]["accuracy"]) == (5.5 / 8, 3.25 / 8)
    assert found["difference"] == pytest.approx(-2.25 / 8)
    # Four times less, once more: 2 * (1 + 5) / 2**5.
    assert found["mcnemar"] == {"first": 4, "other": 1, "p": 12 / 32}
    assert found["agreement"] == 3 / 8
    assert "only the first right 4, only the other 1: exact p 0.375" in compare(first, other).stdout


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    first = answer_file(tmp_path / "a.jsonl", [1, 0], 2)
    for other, said in (
        (
            answer_file(tmp_path / "b.jsonl", [1, 0, 1], 2),
            "0 of the first are not in the other, 1 of the other",
        ),
        (answer_file(tmp_path / "c.jsonl", [1, 0], 1), "unlike questions or pictures"),
        (answer_file(tmp_path / "d.jsonl", [1, 0], 2, rule="pope"), "scored by unlike rules: exact, pope"),
        (tmp_path / "none.jsonl", "none.jsonl: cannot be read"),
    ):
        assert said in str(compare(first, other).exception)
    (tmp_path / "e.jsonl").write_text('{"text": "no answer of eval"}\n')
    assert "holds other lines than answers of eval" in str(compare(first, tmp_path / "e.jsonl").exception)
