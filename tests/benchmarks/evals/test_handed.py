"""Public sets that a judge or a server scores, another version of a set, and `eval` of a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.benchmarks.conftest import Honest
from tests.benchmarks.evals.conftest import Run
from tests.benchmarks.evals.test_public_sets import LABELS, write_lines, write_pope
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge import record_check
from tinyllava_edge.benchmarks.evals import opened
from tinyllava_edge.benchmarks.evals.handed import handed_mark
from tinyllava_edge.benchmarks.evals.opened import _key
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.cli import app


@pytest.fixture
def mmvet(tmp_path: Path) -> Path:
    folder = tmp_path / "mmvet"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (32, 32), (0, 90, 200)).save(folder / "images" / "v1_0.png")
    asked = [{"question_id": n, "image": "v1_0.png", "text": f"What is thing {n}?"} for n in range(2)]
    write_lines(folder / "llava-mm-vet.jsonl", asked)
    return folder


def test_what_a_judge_scores_is_written_for_it_and_labelled(run: Run, mmvet: Path, tmp_path: Path) -> None:
    asked = ("--benchmark", "mmvet", "--data", mmvet)
    code, _, err = run(*asked)
    assert (code, "holds no answers to score by" in err) == (2, True)
    code, out, err = run(
        *asked, "--submission", tmp_path / "mmvet.json", "--answers", tmp_path / "answers.jsonl"
    )
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert (found["score"], found["rule"], found["unscored"], found["as_published"]) == (None, None, 2, False)
    assert found["judged_by"].startswith("GPT-4")
    assert "2 answers are not scored here, but by GPT-4" in err
    said = [json.loads(line)["text"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    written = json.loads((tmp_path / "mmvet.json").read_text())
    assert written == {f"v1_{n}": text for n, text in enumerate(said)}
    assert handed_mark(tmp_path / "mmvet.json") == ""
    code, _, err = run(*asked, "--submission", tmp_path / "mmvet.json")
    assert (code, "mmvet.json: exists already" in err) == (2, True)
    (tmp_path / "mine.json").write_text('{"name": "mine"}')
    code, _, err = run(*asked, "--submission", tmp_path / "mine.json", "--force")
    assert (code, "mine.json: is no file for a judge or a server" in err) == (2, True)
    code, _, err = run("--benchmark", "pope", "--data", mmvet, "--submission", tmp_path / "pope.json")
    assert (code, "no judge or server takes a file of pope" in err) == (2, True)


def test_another_version_of_a_set_is_one_line_and_no_published_score(run: Run, tmp_path: Path) -> None:
    folder = write_pope(tmp_path, LABELS)
    (folder / "val2014").mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (0, 60 * number, 200)).save(folder / "val2014" / f"{number}.jpg")
    arguments = ("--benchmark", "pope", "--data", folder, "--language", "f16,q8_0")
    code, out, err = run(*arguments)
    assert code == 0, err
    assert (
        "8 questions, and published scores of pope are of 8,910: another version, or a part, of the set"
        in err
    )
    found = json.loads(out.splitlines()[-1])
    assert found["as_published"] is False
    assert found["ci95"][0] <= found["accuracy"] <= found["ci95"][1]
    assert found["questions"] == 8
    second = found["variants"][1]
    assert second["against_first"]["difference"] == pytest.approx(second["accuracy"] - found["accuracy"])
    # Labels of another version: a question is not among them.
    label: dict[str, Any] = {"question_id": 0, "image": "0.jpg", "text": "Is it another?", "label": "no"}
    write_lines(folder / "coco" / "coco_pope_popular.json", [label])
    code, _, err = run(*arguments)
    assert (code, "Are all its files of one version?" in err) == (2, True)


def test_an_export_is_known_by_all_that_it_follows_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture's mean changes no weight, and every answer; so may another version of this program."""
    folder = write_tiny_checkpoint(tmp_path / "checkpoint")
    keys = [_key(Checkpoint(folder)), _key(Checkpoint(folder))]
    processor = folder / "preprocessor_config.json"
    processor.write_text(json.dumps({**json.loads(processor.read_text()), "image_mean": [0.4, 0.5, 0.5]}))
    keys.append(_key(Checkpoint(folder)))
    monkeypatch.setattr(opened, "__version__", "another")
    keys.append(_key(Checkpoint(folder)))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


@pytest.mark.long
def test_a_checkpoint_is_exported_once(
    honest: Honest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(record_check, "SETTLED_AFTER_NS", 0)
    Image.new("RGB", (24, 16), (200, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / "q.json").write_text(json.dumps([{"image": "a.png", "question": "What?", "answer": "red"}]))
    asked = [
        "eval",
        str(honest.checkpoint),
        "--questions",
        str(tmp_path / "q.json"),
        "--images",
        str(tmp_path),
    ]
    asked += ["--vision", "fp32", "--language", "f32", "--max-tokens", "3", "--no-blind", "--json"]
    first = CliRunner().invoke(app, asked)
    assert first.exit_code == 0, first.output
    assert "a checkpoint, which is exported once" in first.stderr
    again = CliRunner().invoke(app, asked)
    assert "was exported before" in again.stderr
    assert json.loads(again.stdout) == json.loads(first.stdout)
    asked[1] = str(honest.bundle)
    assert (
        json.loads(CliRunner().invoke(app, asked).stdout)["accuracy"] == json.loads(first.stdout)["accuracy"]
    )
