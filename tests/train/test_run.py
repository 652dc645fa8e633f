"""The log of an unfinished run is somebody's file by the time it is read again. No model."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.errors import DataError, UsageError
from tinyllava_edge.train.data import read_lines
from tinyllava_edge.train.run import held_run, open_run, remove_work, truncate_log
from tinyllava_edge.work_places import LOCK_FILE

WHOLE = b'{"stage": "finetune", "step": 1, "loss": 2.5, "seconds": 0.1}\n'


@pytest.mark.parametrize("line", [
    b"\xff\n", b"null\n", b"[1]\n", b"{}\n", b'{"step": 1}\n', b"1\n", b"[" * 100_000 + b"\n", b"\n",
    b'{"stage": "a", "step": "1", "loss": 1, "seconds": 1}\n',
    b'{"stage": "a", "step": 1, "loss": NaN, "seconds": 1}\n',
    b'{"stage": "a", "step": 1, "loss": 1, "seconds": "long"}\n',
    b'{"stage": "a", "step": 1, "loss": 1' + b"0" * 400 + b', "seconds": 1}\n',
    b'{"step": 1, "loss": 1, "seconds": 1}\n', b'{"stage": 1, "step": 1, "loss": 1, "seconds": 1}\n',
    b'{"stage": "\\u0000", "step": 1, "loss": 1, "seconds": 1}\n',
])  # fmt: skip
def test_a_damaged_line_of_a_log_is_named(tmp_path: Path, line: bytes) -> None:
    log = tmp_path / "training_log.jsonl"
    log.write_bytes(WHOLE + line + WHOLE)
    for read in (lambda: truncate_log(log, 9), lambda: read_lines(log)):
        with pytest.raises(DataError, match=r"training_log\.jsonl: .*--force") as caught:
            read()
        assert len(str(caught.value)) < 300
    assert log.read_bytes() == WHOLE + line + WHOLE


def test_a_line_that_a_kill_cut_short_is_dropped_whatever_it_is(tmp_path: Path) -> None:
    log = tmp_path / "training_log.jsonl"
    log.write_bytes(WHOLE + b"\xff{")
    assert truncate_log(log, 9) == 0.1
    assert log.read_bytes() == WHOLE


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff", b"null", json.dumps({"seed": "x" * 99_999}).encode()]
)
def test_what_an_unfinished_run_says_of_itself_is_not_repeated_at_length(
    tmp_path: Path, content: bytes
) -> None:
    work = tmp_path / "out.work"
    work.mkdir()
    (work / "run.json").write_bytes(content)
    facts: dict[str, Any] = {"seed": 0}
    if content[:1] == b"{":
        with pytest.raises(UsageError, match="the unfinished run has seed") as caught:
            open_run(tmp_path / "out", facts, resume=True, force=False)
        assert len(str(caught.value)) < 600
    else:
        open_run(tmp_path / "out", facts, resume=True, force=False)
        assert json.loads((work / "run.json").read_text()) == facts


def test_what_a_finished_run_left_goes_and_its_lock_last(tmp_path: Path) -> None:
    work = tmp_path / "out.work"
    with held_run(tmp_path / "out"):
        (work / "step-00000003").mkdir()
        (work / "run.json").touch()
        remove_work(tmp_path / "out")
        assert os.listdir(work) == [LOCK_FILE]
    assert not work.exists()
