"""What the tests of training share."""

import gc
import multiprocessing
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from tests.train.own_data import write_small_checkpoint
from tinyllava_edge import record_check

gc.freeze()  # the Trainer collects garbage at every start: 0.8 s among all that is imported here


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """The bits of a sum depend on the threads, and the torch runtime sets their number for the process."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to start from."""
    return write_small_checkpoint(tmp_path_factory.mktemp("train") / "source")


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own, and pictures that need not be two seconds old."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(record_check, "SETTLED_AFTER_NS", 0)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> ForkServerContext:
    """Processes with one thread, forked from one that has imported torch."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.preloaded"])
    return context
