"""Dockerfiles as far as they can be read without Docker; `tools/dockerfile.py` runs them in chroots."""

import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.test_packaging import PROJECT
from tools.dockerfile import read_stages

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


def run_lines(path: Path) -> list[str]:
    return [rest for stage in read_stages(path) for word, rest in stage.steps if word == "RUN"]


def test_there_is_one_for_boards_for_cards_and_for_processors() -> None:
    assert {path.name for path in FILES} == {"l4t.Dockerfile", "cuda.Dockerfile", "cpu.Dockerfile"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_its_lines_are_shell_and_name_what_there_is(path: Path) -> None:
    lines = run_lines(path)
    assert lines
    for line in lines:
        assert subprocess.run(["sh", "-n", "-c", line], check=False).returncode == 0, line
        for module in re.findall(r"python -m (tinyllava_edge[\w.]+)", line):
            assert find_spec(module), line
        for word in shlex.split(line):
            if word.startswith("/src["):
                assert set(Requirement(f"x{word.removeprefix('/src')}").extras) <= set(EXTRAS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_llama_cpp_is_installed_before_pip_could_bring_another_and_for_the_gpu_by_name(path: Path) -> None:
    lines = run_lines(path)
    [build] = [number for number, line in enumerate(lines) if "tinyllava_edge.install" in line]
    [project] = [number for number, line in enumerate(lines) if "/src[" in line]
    assert build < project
    assert ("--cuda" in lines[build]) == (path.name != "cpu.Dockerfile"), (
        "while an image is built no GPU is shown"
    )


def test_steps_are_read_over_continued_lines_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(
        "# a\nFROM x AS build\nRUN one && \\\n  # in between\n  two\nFROM y\nCOPY --from=build /a /b\n"
    )
    first, second = read_stages(path)
    assert (first.base, first.name, second.base) == ("x", "build", "y")
    assert first.steps == [("RUN", "one &&    two")]
    assert second.steps == [("COPY", "--from=build /a /b")]
