"""`doctor --clean`: what killed processes left is removed, and what may be wanted is named and stays."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from tests.test_cli import assert_one_line, run

LOCK = "tinyllava-edge.lock"


def made(folder: Path, *names: str, size: int = 100) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"" if name == LOCK else bytes(size))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Directories as killed processes, running ones and users leave them."""
    home = tmp_path / "~\n"
    made(home / "deep" / ".out.tmp-abcd1234", LOCK, "new/half")
    made(home / ".out.old-abcd1234", LOCK, "old/weights")
    made(home / ".live.tmp-abcd1234", LOCK, "new/half")
    made(home / ".older.tmp-abcd1234", "half")
    made(home / "tuned.work", LOCK, "run.json", "step-00000010/state.pt")
    made(home / "begun.work", LOCK)
    made(home / "mine.work", "letters.txt")
    made(home / "mine.parts", "tinyllava_edge.json")
    made(home / ".tuned.parts", "model.safetensors")
    (home / ".tuned.parts" / "tinyllava_edge.json").write_text('{"recipe": "assembled"}')
    (home / ".report.tinyllava-edge-abcd1234.json").write_text("{")
    (home / ".report.abcd1234.json").write_text("mine")
    made(tmp_path / "cache" / "tinyllava-edge" / "engines" / ".work.abcd1234", LOCK, "engine.plan")
    made(tmp_path / "tmp" / "tinyllava-edge-abcd1234", LOCK, "graph.onnx")
    return home


def test_what_is_dead_goes_and_the_rest_is_named(home: Path, tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    handle = os.open(home / ".live.tmp-abcd1234" / LOCK, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    result = run("doctor", "--clean", home, "--json", **environment)
    os.close(handle)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    removed = {Path(one["path"]).name for one in found["removed"]}
    kept = {Path(one["path"]).name: one["stays"] for one in found["kept"]}
    assert removed == {
        *(".out.tmp-abcd1234", "begun.work", ".tuned.parts", ".report.tinyllava-edge-abcd1234.json"),
        *(".work.abcd1234", "tinyllava-edge-abcd1234"),
    }
    assert found["bytes"] == 100 * 4 + len('{"recipe": "assembled"}') + 1
    assert "move it back" in kept.pop(".out.old-abcd1234")
    assert "a running process" in kept.pop(".live.tmp-abcd1234")
    assert "older version or not ours" in kept.pop(".older.tmp-abcd1234")
    assert "--resume" in kept.pop("tuned.work")
    assert kept == {}
    assert set(os.listdir(home)) == {
        *(".live.tmp-abcd1234", ".older.tmp-abcd1234", ".out.old-abcd1234", ".report.abcd1234.json"),
        *("deep", "mine.parts", "mine.work", "tuned.work"),
    }
    assert (home / ".out.old-abcd1234" / "old" / "weights").exists()
    text = run("doctor", "--clean", home, **environment).stdout
    assert r"~\n/tuned.work: 200 bytes, stays: an unfinished training" in text
    assert text.endswith("100 bytes removed\n")


def test_directories_without_clean_are_refused(tmp_path: Path) -> None:
    assert_one_line("doctor", tmp_path, named=("--clean",))
    assert_one_line("doctor", "--clean", tmp_path / "absent", named=("absent",))
