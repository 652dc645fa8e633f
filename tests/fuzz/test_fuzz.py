"""A slice of `make fuzz`, and whether it would find what it looks for."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import worker
from tests.fuzz.damage_bytes import bytes_damaged
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.worker import OUTCOMES, run_in_worker
from tinyllava_edge.errors import DataError

ROOT = Path(__file__).parents[2]


def fuzz(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_a_slice_of_every_kind_ends_in_an_answer_or_a_typed_error(tmp_path: Path) -> None:
    done = fuzz("--seed", "20261129", "--count", "6", "--json", "-o", str(tmp_path))
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    faults = [
        f"{fault['kind']} {fault['index']}: {fault['outcome']} {fault['where']}" for fault in found["faults"]
    ]
    assert faults == []
    assert done.returncode == 0, done.stderr
    assert found["kinds"]["all"]["inputs"] == 6 * len(KINDS)
    assert len(found["corpus_sha256"]) == 64


def stop(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def wait(path: Path) -> None:
    time.sleep(60)


def allocate(path: Path) -> None:
    bytearray(1 << 40)


def refuse(path: Path) -> None:
    raise DataError(f"{path}: no.")


def refuse_without_a_word(path: Path) -> None:
    raise DataError("")


def wrong_key(path: Path) -> None:
    dict[str, int]()["key"]


READERS: dict[str, tuple[Callable[[Path], None] | str, str]] = {
    "reads": (lambda path: None, "ok"),
    "refuses": (refuse, "typed"),
    "refuses without a word": (refuse_without_a_word, "unclear"),
    "falls": (wrong_key, "traceback"),
    "wants all memory": (allocate, "traceback"),
    "dies": (stop, "signal"),
    "hangs": (wait, "hang"),
    "no such command": ("inspect {}/nowhere", "typed"),
    "help": ("inspect --help", "ok"),
}


@pytest.mark.parametrize("name", READERS)
def test_each_outcome_is_told(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, expected = READERS[name]
    (tmp_path / "corpus" / "t").mkdir(parents=True)
    (tmp_path / "corpus" / "t" / "f").write_bytes(b"good")
    monkeypatch.setitem(KINDS, name, Kind("t", "f", bytes_damaged, read))
    found = list(run_in_worker(tmp_path / "corpus", name, 1, range(2), timeout=3 if name == "hangs" else 30))
    assert [(outcome.index, outcome.outcome) for outcome in found] == [(0, expected), (1, expected)]
    assert expected in OUTCOMES


def test_an_input_is_the_same_each_time() -> None:
    for name, kind in KINDS.items():
        if kind.damage is bytes_damaged:
            inputs = [worker.damaged_input(kind, name, 1, index, b"content" * 99) for index in (0, 0, 1)]
            assert inputs[0] == inputs[1] != inputs[2], name
