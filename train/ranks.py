"""One of several processes: who writes, and who tells what went wrong."""

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from tinyllava_edge.errors import TinyLlavaEdgeError

_P = ParamSpec("_P")
_R = TypeVar("_R")
_TOLD_WITHIN = 5  # seconds in which the launcher ends all after the first has told


def rank() -> int:
    """Number of this process, as torchrun and accelerate say it; 0 without them."""
    return int(os.environ.get("RANK", "0") or 0)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Let the others do the body when the first has done it."""
    if world_size() == 1:
        yield
        return
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())
    if not is_first():
        state.wait_for_everyone()
    yield
    if is_first():
        state.wait_for_everyone()


def first_tells(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let the first process tell an error that all have; another tells one of its own a little later."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except TinyLlavaEdgeError as error:
            if not is_first():
                time.sleep(_TOLD_WITHIN)  # the launcher's SIGTERM ends it
                error.args = (f"process {rank()}: {error}",)
            raise

    return run
