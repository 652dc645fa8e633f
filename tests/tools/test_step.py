"""What `make` says while it installs. No model."""

import sys

import pytest

from tools.step import run_step


def test_a_long_step_gives_signs_of_life(capfd: pytest.CaptureFixture[str]) -> None:
    said = "print('llama.cpp: a GPU is left out'); print('[ 3/9] Building x.c', file=sys.stderr, flush=True)"
    code = f"import sys, time; sys.stdout.reconfigure(line_buffering=True); {said}; time.sleep(0.5)"
    assert run_step("compiles; half a second", [sys.executable, "-c", code], every_s=0.2) == 0
    out, err = capfd.readouterr()
    assert out == ""
    first, *alive, warning, last = err.splitlines()
    assert first == "== compiles; half a second"
    assert warning == "llama.cpp: a GPU is left out", "what a person should read is not lost"
    assert alive[-1].endswith(": [ 3/9] Building x.c")
    assert last.startswith("   done after ")


def test_a_step_that_fails_shows_the_end_of_what_it_said(capfd: pytest.CaptureFixture[str]) -> None:
    said = "print('\\n'.join(map(str, range(99)))); print('\\x1b[31mno compiler\\x1b[0m')"
    code = f"import sys; {said}; sys.exit(7)"
    assert run_step("fails", [sys.executable, "-c", code]) == 7
    lines = capfd.readouterr().err.splitlines()
    assert lines[1:3] == ["60", "61"]
    assert lines[-2:] == ["no compiler", lines[-1]]
    assert lines[-1].startswith("   FAILED, exit code 7, after ")


def test_pip_says_more_and_what_a_caller_set_stays(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_VERBOSE", "2")
    code = "import os, sys; sys.exit(int(os.environ['PIP_VERBOSE']))"
    assert run_step("x", [sys.executable, "-c", code]) == 2
    monkeypatch.delenv("PIP_VERBOSE")
    assert run_step("x", [sys.executable, "-c", code]) == 1
