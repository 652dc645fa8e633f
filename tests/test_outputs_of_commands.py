"""What every command with an output refuses before any work: its sources, and what is not its own."""

import json
from pathlib import Path

import pytest

from tests.core.small_bundle import tree, write_small_bundle
from tests.test_cli import assert_one_line
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.benchmarks.evals import hub_report
from tinyllava_edge.benchmarks.evals.answers import answers_mark
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import DiskFullError, UsageError
from tinyllava_edge.export.disk_space import bytes_needed
from tinyllava_edge.export.options import ExportOptions
from tinyllava_edge.export.pipeline import export_bundle
from tinyllava_edge.runtimes.trt.build_ahead import engines_mark
from tinyllava_edge.train.run import check_checkpoint, check_run
from tinyllava_edge.train.written import checkpoint_mark

SMALL = ExportOptions(vision=("fp32",), language=("f16", "q8_0"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A checkpoint `home/ck`, a bundle `home/b`, questions `home/q.json`, pictures `home/pictures`."""
    home = tmp_path / "home"
    write_tiny_checkpoint(home / "ck", hidden=32, intermediate=48, layers=1)
    write_small_bundle(home / "b")
    (home / "pictures").mkdir()
    (home / "q.json").write_text("[]")
    return home


@pytest.mark.parametrize(
    ("command", "relation"),
    [
        ("export ck -o ck --force", "is"),
        ("export ck -o ck/x", "lies in"),
        ("export ck -o ck/x --interchange transformers", "lies in"),
        ("export ck -o . --force", "holds"),
        ("export ck -o pictures/x --calibration pictures", "lies in"),
        ("export ck -o pictures/x --sources pictures", "lies in"),
        ("prune b -o b --force --vision fp32 --language f16", "is"),
        ("prune b -o b/inner --vision fp32 --language f16", "lies in"),
        ("train --from ck --data q.json -o ck --force", "is"),
        ("train --from ck --data q.json -o ck/x --resume", "lies in"),
        ("train --from ck --data q.json --images pictures -o pictures/x", "lies in"),
        ("train --tower b --llm ck --data q.json -o b --force", "is"),
        ("bench b -o b/report", "lies in"),
        ("bench b -o pictures/x --questions q.json --images pictures", "lies in"),
        ("eval b --questions q.json --images pictures --answers q.json --force", "is"),
        ("eval b --questions q.json --images pictures --answers b/parity/a.json", "lies in"),
        ("eval b --benchmark gqa --data pictures --submission pictures/x.json", "lies in"),
        ("eval b --questions q.json --images pictures --merge q.json --answers q.json --force", "is"),
        ("ask b --input q.json -o q.json --force", "is"),
        ("ask b What? pictures -o pictures/x.jsonl", "lies in"),
        ("ask b --input q.json --images pictures -o b/parity/a.json", "lies in"),
        ("hub-check --hub-root .. --checkpoints home/b -o b/x", "lies in"),
        ("hardware-check b -o b/x", "lies in"),
        ("hardware-check b -o . --force", "holds"),
        ("build b -o . --force", "holds"),
        ("card b -o b --force", "is"),
        ("card b --bench pictures -o pictures/x", "lies in"),
    ],
)
def test_an_output_that_touches_a_source_is_refused(home: Path, command: str, relation: str) -> None:
    before = tree(home)
    words = [
        str(home / word) if word != "home/b" and ((home / word).exists() or "/" in word) else word
        for word in command.split()
    ]
    assert_one_line(*words, named=(f": {relation} {home}", "which this command reads"))
    assert tree(home) == before


def test_the_interface_refuses_too(home: Path) -> None:
    with pytest.raises(UsageError, match="which this command reads"):
        export_bundle(Checkpoint(home / "ck"), home / "ck" / "x", SMALL)
    with pytest.raises(UsageError, match="which this command reads"):
        check_run(home / "ck", resume=True, force=True, sources=(home / "ck",))


def test_only_a_checkpoint_that_was_trained_is_replaced(home: Path) -> None:
    sidecar = home / "ck" / "tinyllava_edge.json"
    sidecar.write_text('{"template": "llama"}')  # a user's own word on a checkpoint from elsewhere
    assert "no checkpoint that this program trained" in checkpoint_mark(home / "ck")
    sidecar.write_text('{"template": "llama", "recipe": "full", "data_sha256": "0"}')
    (home / "ck" / "special_tokens_map.json").unlink(missing_ok=True)
    check_checkpoint(home / "ck", force=True)
    (home / "ck" / "notes.md").write_text("mine")
    assert checkpoint_mark(home / "ck").startswith("holds notes.md")


@pytest.mark.parametrize(
    "name", ["notes.md", ".ssh", ".git/config", "step-by-step.pdf", "step-00000001/a", "checkpoint-1/a"]
)
def test_a_directory_with_a_users_file_is_no_unfinished_run(tmp_path: Path, name: str) -> None:
    work = tmp_path / "out.work"
    (work / "step-00000001").mkdir(parents=True)
    (work / "run.json").write_text("{}")
    (work / "step-00000001" / "state.pt").write_text("")
    check_run(tmp_path / "out", resume=False, force=True)
    (work / name).parent.mkdir(exist_ok=True)
    (work / name).write_text("mine")
    with pytest.raises(Exception, match="remove it to begin anew"):
        check_run(tmp_path / "out", resume=False, force=True)


def test_answers_are_known_by_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps({'question_id': 1, 'text': 'a', 'metadata': {'blind': False}})}\n")
    assert answers_mark(path) == ""
    path.write_text(f"{json.dumps({'question_id': 1, 'text': 'a', 'metadata': {}})}\n")  # upstream's own
    assert answers_mark(path) != ""
    path.write_text("mine")  # no line is complete, so no line is ours
    assert answers_mark(path) != ""
    path.write_text("")
    assert answers_mark(path) == ""


def test_reports_are_known_by_what_they_list(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"kind": "engines", "engines": [{"engine": "fp16"}]}')
    (tmp_path / "fp16.engine").write_text("")
    assert engines_mark(tmp_path) == ""
    (tmp_path / "fp32.engine").write_text("")
    assert engines_mark(tmp_path).startswith("holds fp32.engine")
    (tmp_path / "report.json").write_text(
        '{"options": {}, "complete": true, "checkpoints": [{"repository": "a/b"}]}'
    )
    assert hub_report.report_mark(tmp_path).startswith("holds fp16.engine")
    for name in ("fp16.engine", "fp32.engine"):
        (tmp_path / name).unlink()
    (tmp_path / "c--d.json").write_text('{"repository": "c/d"}')  # of a run that was killed
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "c--d.pope.jsonl").write_text("")
    write_small_bundle(tmp_path / "bundles" / "a--b")
    assert hub_report.report_mark(tmp_path) == ""
    (tmp_path / "bundles" / "a--b" / "mine").write_text("")
    assert hub_report.report_mark(tmp_path).startswith("holds mine")


def test_an_export_says_at_once_that_there_is_no_room(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = bytes_needed(Checkpoint(home / "ck"), SMALL)
    monkeypatch.setattr("tinyllava_edge.full_disk.free_bytes", lambda path: needed - 1)
    with pytest.raises(DiskFullError, match=f"out: the disk is full: {needed:,} bytes are needed"):
        export_bundle(Checkpoint(home / "ck"), home / "out", SMALL)
    assert not (home / "out").exists()
