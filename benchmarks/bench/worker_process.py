"""The process of one cell, from outside."""

import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.errors import BackendError

from .peers.rivals import RivalCell
from .worker import JOBS, Request, cell_command

Sample = dict[str, Any]


class Worker:
    """The process of one cell."""

    def __init__(self, cell: Cell | RivalCell, request: Request) -> None:
        self.name, self._cell = cell.name, cell
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = cell.command(request) if isinstance(cell, RivalCell) else cell_command(cell, request)
        # In a session of its own Ctrl-C ends it through its input, and not with a traceback.
        self._process: Any = subprocess.Popen(command, start_new_session=True, **pipes)
        self._is_busy = True  # until it says that it is open
        self.jobs: tuple[str, ...] = ()
        self.process_id: int = self._process.pid

    def open(self) -> Sample:
        """Wait until it is open: `load_s`, and facts of what was opened; its jobs are known from then on."""
        said = self.read()
        self.jobs = tuple(said.pop("jobs", JOBS))
        return said

    def ask(self, job: str, on_more: Callable[[], None] = lambda: None, **details: Any) -> Sample:
        """Give it a job, a method of `OpenCell`, and wait for what comes of it."""
        self._is_busy = True
        with suppress(BrokenPipeError):  # it has ended: reading says so
            self._process.stdin.write(json.dumps({"job": job, **details}) + "\n")
            self._process.stdin.flush()
        while "more" in (said := self.read()):
            self._is_busy = True
            on_more()
        return said

    def read(self) -> Sample:
        """The next line that the process says."""
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            words = self._cell.last_words() if isinstance(self._cell, RivalCell) else "its words are above"
            raise BackendError(f"{self.name}: its process ended with code {code}; {words}.")
        said: Sample = json.loads(line)
        self._is_busy = False
        if "error" in said:
            raise BackendError(f"{self.name}: {said['error']}")
        return said

    def close(self) -> None:
        """End the process by ending its input; in the middle of a job, which nobody waits for, at once."""
        if self._is_busy:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                stream.close()
        self._process.wait()
