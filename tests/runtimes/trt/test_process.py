"""The process that builds an engine, where a program of our own stands in its place."""

from pathlib import Path

import pytest

from tinyllava_edge.errors import EngineBuildError
from tinyllava_edge.runtimes.trt import process
from tinyllava_edge.runtimes.trt.options import EngineOptions


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "builder"
    monkeypatch.setattr("sys.executable", str(path))
    return path


def run(script: Path, lines: str) -> dict[str, object]:
    script.write_text(f"#!/bin/sh\n{lines}\n")
    script.chmod(0o755)
    return process.build_engine_apart(script, EngineOptions(), script.with_name("engine"))


def test_a_library_that_says_much_does_not_stop_the_build(script: Path) -> None:
    """More than a pipe holds, before and after the answer."""
    words = "head -c 300000 /dev/zero >&2"
    assert run(script, f'{words}; echo "{{\\"facts\\": {{\\"a\\": 1}}}}"; {words}') == {"a": 1}


def test_the_last_words_of_a_process_that_ends_are_told(script: Path) -> None:
    with pytest.raises(EngineBuildError, match=r"ended with code 3: .*the end\. Try again"):
        run(script, "head -c 100000 /dev/zero | tr '\\0' x >&2; echo ' the end' >&2; exit 3")
    with pytest.raises(EngineBuildError, match="ended with code 0: it said nothing"):
        run(script, "exit 0")
