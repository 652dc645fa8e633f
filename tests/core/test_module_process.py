"""Processes of our modules: what lies in the current directory is not what they import."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllava_edge.module_process import module_command

ROOT = Path(__file__).parents[2]
POISONED = ("numpy", "runpy", "typing", "llama_cpp", "pydantic", "tinyllava_edge", "bundle", "image")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with files that end whatever imports them."""
    for name in POISONED:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the user was run')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_users_files_are_not_imported(folder: Path) -> None:
    words = ("inspect", "nano", "--json")
    with_m = subprocess.run([sys.executable, "-m", "numpy"], capture_output=True, text=True, check=False)
    assert "of the user was run" in with_m.stderr  # they are traps
    ours = subprocess.run(
        module_command("tinyllava_edge", *words), capture_output=True, text=True, check=False
    )
    assert (ours.returncode, ours.stderr) == (0, "")
    assert ours.stdout.startswith("{")


def test_it_is_the_package_of_this_process_and_pythonpath_stays(folder: Path) -> None:
    extra = folder / "extra"
    extra.mkdir()
    (extra / "numpy.py").write_text("raise SystemExit('numpy of PYTHONPATH')")
    done = subprocess.run(
        module_command("tinyllava_edge.image"),
        env={**os.environ, "PYTHONPATH": str(extra)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "numpy of PYTHONPATH\n"
    command = [sys.executable, "-W", "ignore", "-X", "importtime", *module_command("tinyllava_edge")[1:]]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("tinyllava-edge ")


def test_no_process_of_ours_is_started_with_m() -> None:
    """`python -m` has the current directory first; pip and venv are not ours."""
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for top in ("tinyllava_edge", "export", "runtimes", "train", "benchmarks")
        for path in (ROOT / top).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r'executable, "-[mc]"(?!, "(?:pip|venv)")', line)
    ]
    assert found == []
