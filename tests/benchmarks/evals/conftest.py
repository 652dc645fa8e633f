"""`eval nano ...` in this process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyllava_edge import cli, record_check

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`eval nano ...` in this process, with a cache of its own: exit code, stdout, stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(record_check, "SETTLED_AFTER_NS", 0)

    def evaluate(*arguments: str | Path) -> tuple[int, str, str]:
        words = ["tinyllava-edge", "eval", "nano", *arguments, "--threads", "1", "--max-tokens", "4"]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return evaluate
