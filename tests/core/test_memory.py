"""The watch sees what a program takes, and only that."""

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyllava_edge import memory
from tinyllava_edge.memory import Watch, watched_memory

MEGABYTE = 1 << 20
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells anonymous memory apart"
)


@pytest.fixture
def watch() -> Iterator[Watch]:
    with watched_memory() as watch:
        yield watch


def peak(watch: Watch) -> int:
    found = watch.peak_bytes()
    assert found is not None
    return found


def test_a_peak_that_is_gone_again_is_seen_once(watch: Watch) -> None:
    before = peak(watch)
    taken = bytearray(200 * MEGABYTE)
    taken[::4096] = b"x" * len(taken[::4096])
    time.sleep(0.1)
    del taken
    time.sleep(0.1)
    assert 190 * MEGABYTE < peak(watch) - before < 260 * MEGABYTE
    time.sleep(0.1)
    assert peak(watch) - before < 60 * MEGABYTE


def test_a_child_counts(watch: Watch) -> None:
    before = peak(watch)
    code = f"taken = b'x' * {150 * MEGABYTE}; import time; time.sleep(0.3)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert peak(watch) - before > 140 * MEGABYTE


def test_a_mapped_file_does_not_count(watch: Watch, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 150 * MEGABYTE)
    before = peak(watch)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[::4096] = b"x" * (len(mapped) // 4096)
        time.sleep(0.1)
        assert peak(watch) - before < 60 * MEGABYTE


def test_where_the_system_does_not_tell_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "anonymous_bytes", lambda pid: None)
    with watched_memory() as watch:
        assert watch.peak_bytes() is None


def test_growing_blocks_leave_no_holes_behind() -> None:
    """What a cache of keys and values does: every array is copied to a larger place, one row at a time."""
    code = """
import os
import numpy as np
from tinyllava_edge.memory import anonymous_bytes, return_large_blocks
return_large_blocks()
before = anonymous_bytes(os.getpid())
np.ones(3_900_000)  # 31 MB, freed at once: what glibc learns from
arrays = [np.ones(525_000) for _ in range(40)]
for _ in range(30):
    arrays = [np.concatenate([array, np.ones(1000)]) for array in arrays]
print(anonymous_bytes(os.getpid()) - before - sum(array.nbytes for array in arrays))
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(result.stdout) < 20 * MEGABYTE  # without: 181 MB


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGSTOP])
def test_a_watch_that_was_killed_or_stopped_claims_nothing(
    monkeypatch: pytest.MonkeyPatch, signal_: signal.Signals
) -> None:
    monkeypatch.setattr(memory, "_ANSWER_S", 0.2)
    with watched_memory() as watch:
        assert peak(watch) > 0
        assert watch._process is not None
        os.kill(watch._process.pid, signal_)
        assert [watch.peak_bytes(), watch.peak_bytes()] == [None, None]


def test_where_no_process_can_be_started_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with watched_memory() as watch:
        assert watch.peak_bytes() is None
