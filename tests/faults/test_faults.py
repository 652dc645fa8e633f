"""A slice of `make faults`: operations on the disk that fail or kill, of every command with an output."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Of these, so many operations apart: what is quick is looked at more closely.
EVERY = {"bundle": 9, "prune": 11, "deploy": 200, "build record": 9, "train": 110, "export": 250}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    if shutil.which("cc") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    each = [f"{name}={every}" for name, every in EVERY.items()]
    command = [sys.executable, "-m", "tests.faults", "--json", "--before", "old", "--every", *each]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_every_case_was_struck(rows: list[dict[str, Any]]) -> None:
    assert {(row["case"], row["mode"]) for row in rows} == {
        (case, mode) for case in EVERY for mode in ("kill", "ENOSPC", "EIO")
    }
    assert all(row["runs"] > 0 for row in rows)
    assert all(set(row["ended"]) == {"SIGKILL"} for row in rows if row["mode"] == "kill")


@pytest.mark.parametrize("mode", ["kill", "ENOSPC", "EIO"])
def test_the_old_output_or_the_new_one_is_whole_and_the_error_is_one_line(
    rows: list[dict[str, Any]], mode: str
) -> None:
    faults = [f"{row['case']} {fault}" for row in rows if row["mode"] == mode for fault in row["faults"]]
    assert faults == []


def test_the_next_run_clears_what_a_killed_one_left(rows: list[dict[str, Any]]) -> None:
    left = [f"{row['case']} {operation}" for row in rows for operation in row["left"]]
    assert left == []


def test_the_shim_finds_an_output_that_is_written_in_place(tmp_path: Path) -> None:
    """Half a file where the old one was is what all this looks for."""
    script = tmp_path / "naive.py"
    script.write_text(NAIVE)
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "half an output" in done.stdout


NAIVE = """
import os, subprocess, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from tests.faults import strike
from tests.faults.cases import Case
folder = Path(sys.argv[1])
if "LD_PRELOAD" not in os.environ:
    sys.exit(subprocess.run([sys.executable, *sys.argv], env=strike.with_shim(folder)).returncode)

def write(source, place):
    (place / "out").mkdir(exist_ok=True)
    with open(place / "out" / "a", "wb", buffering=0) as file:
        file.write(b"first half, ")
        file.write(b"second half")

def whole(out):
    assert (out / "a").read_bytes() == b"first half, second half"

strike.CASES["naive"] = Case(write, whole)
row = strike.strike_all("naive", "none", "kill", folder, folder / "none", every=1)
print(row.faults)
"""
