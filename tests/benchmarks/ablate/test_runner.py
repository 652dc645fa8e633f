"""Cells are run by the user's own commands: shared steps once, a failure by itself, a kill without loss."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.ablate.own_grid import write_grid
from tests.test_cli import ROOT, run
from tinyllava_edge.append_jsonl import work_path
from tinyllava_edge.benchmarks.ablate.grid import read_grid
from tinyllava_edge.benchmarks.ablate.report import is_report, markdown_lines, record_of
from tinyllava_edge.benchmarks.ablate.runner import Runner
from tinyllava_edge.benchmarks.ablate.steps import plan_cells
from tinyllava_edge.errors import UsageError
from tinyllava_edge.work_places import held

STEPS = 80
ONE_CELL = {"learning_rate": [1e-3], "fraction": [1.0]}


def test_a_cell_that_fails_is_recorded_and_the_others_are_begun(tmp_path: Path) -> None:
    """Unknown precisions: `train` refuses them before it imports torch."""
    axes = {"learning_rate": [1e-3], "fraction": [1.0], "precision": ["nope", "neither|nor"]}
    grid, out = write_grid(tmp_path, base={"pretrain": None}, axes=axes), tmp_path / "out"
    result = run("ablate", grid, "-o", out, "--json")
    assert result.returncode == 1, result.stderr
    printed = json.loads(result.stdout)
    stored = json.loads((out / "report.json").read_text())
    assert {**stored, "schema": printed["schema"]} == printed
    errors = [cell["error"] for cell in stored["cells"]]
    assert "'nope'" in errors[0]
    assert "'neither|nor'" in errors[1]
    assert "\n" not in errors[0]
    assert stored["complete"]
    table = (out / "report.md").read_text()
    assert "0 of 2 cells" in table
    assert re.search(r"precision nope \| failed: .*'nope'", table)
    assert "'neither/nor'" in table
    again = run("ablate", grid, "-o", out)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "Give --resume to go on" in again.stderr
    assert is_report(out)


def _begin(folder: Path, *, at_line: int) -> "subprocess.Popen[str]":
    """`ablate` in a process of its own, until the log of its first training has so many lines."""
    command = [sys.executable, "-m", "tinyllava_edge", "ablate"]
    command += [str(folder / "grid.yaml"), "-o", str(folder / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 300
    while time.monotonic() < end:
        logs = list((folder / "out" / "steps").glob("*.work/training_log.jsonl"))
        if logs and logs[0].read_bytes().count(b"\n") >= at_line:
            return process
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    raise AssertionError("it trains nothing")


@pytest.mark.long
def test_a_killed_training_ends_with_its_runner_and_goes_on(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, base={"pretrain": None, "max_steps": STEPS, "save_every": 2}, axes=ONE_CELL)
    process = _begin(tmp_path, at_line=10)
    process.kill()
    process.communicate()
    [work] = (tmp_path / "out" / "steps").glob("*.work")
    for _ in range(100):
        try:
            with held(work):  # whoever trained is gone, and its lock with it
                break
        except UsageError:
            time.sleep(0.05)
    else:
        raise AssertionError("the training outlives its runner")
    assert not (tmp_path / "out" / "steps" / work.stem).exists()
    [cell] = plan_cells(read_grid(grid, max_cells=1))
    assert cell.training.key == work.stem
    runner = Runner(tmp_path / "out" / "steps", {})
    checkpoint = runner.checkpoint(cell.training)
    found = runner.known(cell.training.key)
    assert (found["steps"], found["checkpoint"]) == (STEPS, str(checkpoint))
    assert 8 <= found["resumed_at"] < STEPS
    assert not work.exists()


def test_a_question_that_failed_is_shown_and_asked_again_and_no_other_is(tmp_path: Path) -> None:
    grid_file, out = write_grid(tmp_path, base={"pretrain": None}, axes=ONE_CELL), tmp_path / "out"
    asked = json.loads((tmp_path / "questions.json").read_text())
    asked[0]["question"] = "word " * 9000
    (tmp_path / "questions.json").write_text(json.dumps(asked))
    grid = read_grid(grid_file, max_cells=1)
    [cell] = plan_cells(grid)
    folder = out / "steps"
    shutil.copytree(tmp_path / "source", folder / cell.training.key)
    stage = {"steps": 1, "seconds": 1.0, "first_loss": 1.0, "last_loss": 1.0}
    (folder / f"{cell.training.key}.json").write_text(json.dumps(stage))
    runner = Runner(folder, grid.judge)
    first = runner.score(cell)
    assert [record["kind"] for record in first["failed"]] == ["too long"]
    shutil.rmtree(folder / cell.training.key)  # it is asked of the bundle
    record, bundle, answers = folder / f"{cell.key}.json", folder / f"{cell.key}.bundle", runner.answers(cell)
    before = record.stat().st_mtime_ns
    assert runner.score(cell) == first
    assert record.stat().st_mtime_ns == before
    heading, *lines = markdown_lines(record_of(replace(grid, summary="Two\n\n| rates"), [cell], runner, {}))
    assert heading == "# Two / rates"
    assert re.search(r"\] \(1 failed\) \|.*counts as wrong", " ".join(lines))
    assert Runner(folder, grid.judge).score(cell)["accuracy"] == first["accuracy"]
    assert record.stat().st_mtime_ns > before

    work_path(answers).unlink()  # as a kill leaves it behind the last answer
    record.unlink()
    written = answers.stat().st_mtime_ns
    assert Runner(folder, grid.judge).score(cell)["failed"] == first["failed"]
    assert answers.stat().st_mtime_ns == written
    record.write_text(json.dumps({**first, "failed": []}))
    (bundle / "manifest.json").unlink()  # as a kill leaves it that came while it was removed
    assert Runner(folder, grid.judge).score(cell)["accuracy"] == first["accuracy"]
    assert not bundle.exists()


@pytest.mark.long
def test_a_grid_that_is_killed_and_edited_does_every_step_once(tmp_path: Path) -> None:
    axes = {"learning_rate": [1e-3], "fraction": [0.5, 1.0]}
    grid, out = write_grid(tmp_path, axes=axes), tmp_path / "out"
    process = _begin(tmp_path, at_line=1)
    process.kill()
    process.communicate()
    report = _resumed(grid, out)
    done = {path.name: path.stat().st_mtime_ns for path in (out / "steps").glob("*.json")}
    assert len(done) == 5  # a pretrain, two trainings, two scores
    first, second = report["cells"]
    assert first["stages"][0]["key"] == second["stages"][0]["key"]
    assert [stage["steps"] for stage in first["stages"]] == [1, 2]
    assert first["against_first"] is None
    low, high = second["against_first"]["difference_ci95"]
    assert low <= second["against_first"]["difference"] <= high
    assert (first["questions"], first["images"], first["picture_tokens"]) == (2, 2, 3)
    assert first["parameters"].keys() == {"vision_tower", "connector", "language_model"}
    assert not list((out / "steps").glob("*.bundle"))
    assert (out / "report.png").stat().st_size > 1000
    assert f"| {first['name']} | {first['accuracy']:.3f} [" in (out / "report.md").read_text()

    for path in (out / "steps").glob("*/"):  # what is scored needs no checkpoint
        shutil.rmtree(path)
    report = _resumed(write_grid(tmp_path, axes={**axes, "fraction": [1.0], "seed": [0, 1]}), out)
    now = {path.name: path.stat().st_mtime_ns for path in (out / "steps").glob("*.json")}
    assert now.items() > done.items()
    assert len(now) == 8  # all of seed 1
    assert report["cells"][0] == {**second, "name": report["cells"][0]["name"], **_FIRST}
    [group] = report["seeds"]
    assert (group["seeds"], group["name"]) == (2, "learning_rate 0.001, fraction 1.0")


_FIRST = {"axes": {"learning_rate": "0.001", "fraction": "1.0", "seed": "0"}, "against_first": None}


def _resumed(grid: Path, out: Path) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "tinyllava_edge",
        "ablate",
        str(grid),
        "-o",
        str(out),
        "--resume",
        "--json",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["complete"]
    return report
