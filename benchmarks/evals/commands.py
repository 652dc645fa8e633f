"""A command of ours in a process of its own, for its line of JSON."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from tempfile import TemporaryFile
from typing import Any

from tinyllava_edge.errors import DataError
from tinyllava_edge.module_process import module_command

Record = dict[str, Any]
Said = Callable[[str], None]
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" and hasattr(os, "fork") else None
_PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a process gets when its parent dies


def run_command(line: Sequence[object], heard: Said = lambda said: None) -> Record:
    """The JSON that a command of ours prints; `heard` is called with each line that it says besides.

    Raises:
        DataError: it printed none; the message is its error.
    """
    last = "it said nothing"
    with (
        TemporaryFile() as printed,
        subprocess.Popen(
            module_command("tinyllava_edge", *map(str, line), "--json"),
            stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.PIPE, text=True, errors="replace",
            preexec_fn=partial(_end_with, os.getpid()) if _LIBC else None,
        ) as process,
    ):  # fmt: skip
        try:
            for said in filter(None, map(str.strip, process.stderr or ())):
                last = said.removeprefix("tinyllava-edge: ")
                heard(said)
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
        printed.seek(0)
        lines = printed.read().decode(errors="replace").splitlines()
    if code in (0, 1) and lines and lines[-1].startswith("{"):  # 1: a question failed
        return dict(json.loads(lines[-1]))
    raise DataError(last if code == 2 else f"{line[0]} ended with code {code}: {last}")


def _end_with(parent: int) -> None:
    """Not to be at work on a step still when the killed run is begun again."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # that has ended before
        os._exit(1)
