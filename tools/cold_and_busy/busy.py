"""Decode with nobody beside it, and beside a process whose threads never wait, in turns."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tinyllava_edge.benchmarks.bench.plan import Plan
from tinyllava_edge.benchmarks.bench.worker_process import Worker
from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.errors import BackendError

from .turns import Pairs, Sample, Visit, in_turns, leave_out

BESIDE = ", beside it"
_SETTLE_S = 0.1  # until what goes on, or has stopped, is where the scheduler puts it
_WARM_UP = 3
# Hashing gives Python's lock away while it lasts. Stopped, it would outlive who started it: prctl(2).
_SPIN = """
import ctypes, hashlib, sys, threading
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
def spin(block=bytes(1 << 22)):
    while True:
        hashlib.sha256(block)
for _ in range(int(sys.argv[1])):
    threading.Thread(target=spin, daemon=True).start()
print(flush=True)
sys.stdin.read()
"""


class Busy:
    """A process with so many busy threads; it is stopped, but within `working`."""

    def __init__(self, threads: int) -> None:
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-c", _SPIN, str(threads)]
        self._process = subprocess.Popen(command, start_new_session=True, **pipes)
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self._stop()

    def cpu_s(self) -> float:
        """Processor time that its threads have had."""
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(path.read_text().split()[0]) for path in threads) / 1e9

    @contextmanager
    def working(self) -> Iterator[None]:
        """It works meanwhile."""
        os.kill(self._process.pid, signal.SIGCONT)
        try:
            time.sleep(_SETTLE_S)
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        """Stop it, and wait until all its threads have."""
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)
        time.sleep(_SETTLE_S)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def busy_sessions(
    plan: Plan, threads: int, sessions: int, rounds: int, failed: dict[str, str]
) -> dict[str, list[Pairs]]:
    """Pairs of each session of every row, twice: as it is, and beside so many busy threads.

    All are opened anew in each session; a rival that fails is left out.

    Raises:
        BackendError: one of our own failed.
    """
    found: dict[str, list[Pairs]] = {}
    for _ in range(sessions):
        with ExitStack() as stack, closing(Busy(threads)) as busy:
            rows: dict[str, Visit] = {}
            for cell in plan.rows:
                worker = stack.enter_context(closing(Worker(cell, plan.request)))
                try:
                    worker.open()
                    for _ in range(_WARM_UP):
                        worker.ask("requests")
                except BackendError as error:
                    if isinstance(cell, Cell):
                        raise
                    leave_out(cell.name, error, failed)
                    continue
                rows[cell.name] = partial(_ask, worker, busy, works=False)
                rows[cell.name + BESIDE] = partial(_ask, worker, busy, works=True)
            for name, pairs in in_turns(rows, rounds, failed).items():
                found.setdefault(name, []).append(pairs)
    return found


def _ask(worker: Worker, busy: Busy, *, works: bool) -> Sample:
    """The request's tokens behind the first one, and how many cores the other process had meanwhile."""
    with busy.working() if works else nullcontext():
        start, before = time.monotonic(), busy.cpu_s()
        found = worker.ask("requests")["warm"]
        cores = (busy.cpu_s() - before) / (time.monotonic() - start)
    token_ms = (found["total_ms"] - found["first_token_ms"]) / (found["generated_tokens"] - 1)
    kept = {name: found[name] for name in ("first_token_ms", "next_token_ms")}
    return {"token_ms": token_ms, **kept, "busy_cores": round(cores, 2)}
