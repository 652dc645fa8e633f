"""Measure several cells against each other, interleaved, so that a drifting machine hits all of them alike.

Source of the protocol: docs/sources/measuring.md#warm-up-and-repeats and
docs/sources/measuring.md#interleaved-pairs. In a session every cell is opened anew, in a process of its own,
and warmed up; then come blocks, each of which visits every cell in order and then in reverse (A B B A).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.errors import BackendError

from .device_memory import watched_device
from .machine_load import Shares, evict, read_cpu_times, shares_between
from .pace import Amount, Pace, TimeUp
from .peers.rivals import RivalCell
from .power import ABSENT, PowerWatch
from .worker import Request
from .worker_process import Sample, Worker

MIN_WARM_UP_RUNS = 6
STEADY = 0.05  # how far apart the medians of the last three and the three before may be
PAUSE_S = 0.02  # for threads that still wait for work to fall asleep
Pair = tuple[Sample, Sample]  # of one block, forwards and backwards
OnEvent = Callable[[dict[str, Any]], None]


@dataclass
class CellSession:
    """What one cell gave in one session.

    Attributes:
        load_cold_s: opening it after its files had left the page cache, or None where they would not leave.
        load_warm_s: opening it again, in another new process.
        facts: what was opened; nothing where it was not.
        warm_up: requests before the measurement, the first of them the first one of its process.
        requests: measured ones.
        raw: the backend calls of the request alone; none for the control.
        peak_memory_bytes: of the process, on the host.
        device_peak_bytes: of the GPU, while the cell answered alone; None without one. With `device_memory`.
    """

    load_cold_s: float | None = None
    load_warm_s: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    warm_up: list[Sample] = field(default_factory=list)
    requests: list[Pair] = field(default_factory=list)
    raw: list[Pair] = field(default_factory=list)
    peak_memory_bytes: int = 0
    device_peak_bytes: int | None = None


@dataclass
class Session:
    """One session: of each cell in order, and of each block who else used the processors."""

    cells: list[CellSession]
    blocks: list[Shares | None] = field(default_factory=list)


@dataclass
class Measured:
    """What was measured, whatever ended it.

    Attributes:
        sessions: the last one may have fewer blocks.
        failed: why, of each cell that failed; the others went on without it.
        ended: why it ended early, or nothing.
        stopped: the signal that did.
        error: of the cell without which it could not go on.
    """

    sessions: list[Session] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    ended: str = ""
    stopped: KeyboardInterrupt | None = None
    error: BackendError | None = None


def measure_cells(
    cells: Sequence[Cell | RivalCell],
    request: Request,
    amount: Amount,
    files: Mapping[str, Sequence[Path]],
    on_event: OnEvent = lambda event: None,
    power: PowerWatch | None = None,
    pace: Pace | None = None,
) -> Measured:
    """Measure all cells in interleaved blocks, until they are done, a signal comes, or the time is up.

    A cell that fails is left out from then on; without the first one or the control there is nothing to
    compare with, and all ends.

    Args:
        cells: what to measure; their order is the order in a block. The last one is the control.
        request: what every run does.
        amount: how many sessions and blocks.
        files: of each cell by its name: what it reads its weights from.
        on_event: called with what happens, figures included, as docs/measuring.md lists it.
        power: what is read meanwhile; every answer then has the joules of its time.
        pace: how much of it there is time for; all by default.
    """
    found, pace = Measured(), pace or Pace(amount)
    try:
        while len(found.sessions) < pace.sessions:
            pace.begin()
            _Round(cells, request, amount, files, on_event, pace, found).run(power or PowerWatch(ABSENT))
    except TimeUp as up:
        found.ended = str(up)
    except BackendError as error:
        found.ended, found.error = str(error), error
    except KeyboardInterrupt as stop:
        found.ended, found.stopped = f"stopped by {str(stop) or 'Ctrl-C'}", stop
    return found


@dataclass
class _Round:
    """The one session that is going on."""

    cells: Sequence[Cell | RivalCell]
    request: Request
    amount: Amount
    files: Mapping[str, Sequence[Path]]
    on_event: OnEvent
    pace: Pace
    found: Measured
    workers: dict[int, Worker] = field(default_factory=dict)  # of the cells that work, by their place

    def run(self, power: PowerWatch) -> None:
        """Open, warm up, measure; what there is when it ends stays."""
        self.session = Session([CellSession() for _ in self.cells])
        self.number = len(self.found.sessions)
        self.found.sessions.append(self.session)
        try:
            with ExitStack() as stack:
                # All cold loads first: a process that has a file mapped keeps it in memory.
                first = (self._alone,) if self.amount.alone else ()
                for step in (*first, self._open, self._warm_up):
                    for index, cell in enumerate(self.cells):
                        if cell.name not in self.found.failed:
                            self._try(index, step, index, stack)
                for index, worker in list(self.workers.items()):
                    if "raw" in worker.jobs and index != len(self.cells) - 1:
                        self._try(index, worker.ask, "raw")  # the first time it writes the calls down
                while len(self.session.blocks) < self.pace.blocks:
                    self._block()
        finally:
            _add_energy(self.session, power)

    def _try(self, index: int, work: Callable[..., Any], *arguments: Any) -> Any:
        """What the work gives, or None where its cell failed."""
        self.pace.check()
        try:
            return work(*arguments)
        except BackendError as error:
            if index in (0, len(self.cells) - 1):
                raise
            self.workers.pop(index, None)
            self.found.failed[self.cells[index].name] = str(error)
            self._say("failed", index, why=str(error))
            return None

    def _say(self, event: str, index: int, **details: Any) -> None:
        self.on_event({"event": event, "session": self.number, "cell": self.cells[index].name, **details})

    def _alone(self, index: int, stack: ExitStack) -> None:
        """Its cold load, and what a GPU holds for it: the other cells are not open yet."""
        cell, found = self.cells[index], self.session.cells[index]
        is_cold = evict(self.files[cell.name])
        with watched_device() as device:
            if is_cold or device is not None:
                with closing(Worker(cell, self.request)) as worker:
                    if device is not None:
                        device.process = worker.process_id
                    load_s = float(worker.open()["load_s"])
                    found.load_cold_s = load_s if is_cold else None
                    if device is not None:
                        worker.ask("requests")
                        found.device_peak_bytes = device.peak_bytes()
        self._say("alone", index, load_cold_s=found.load_cold_s, device_peak_bytes=found.device_peak_bytes)

    def _open(self, index: int, stack: ExitStack) -> None:
        found = self.session.cells[index]
        worker = stack.enter_context(closing(Worker(self.cells[index], self.request)))
        facts = worker.open()
        found.load_warm_s = facts.pop("load_s")
        found.facts, self.workers[index] = facts, worker
        self._say("opened", index, load_warm_s=found.load_warm_s, facts=facts)

    def _warm_up(self, index: int, stack: ExitStack) -> None:
        """Requests until their time is steady, or there were as many or for as long as there may be."""
        worker, found = self.workers[index], self.session.cells[index]
        totals: list[float] = []
        start = time.monotonic()
        while len(totals) < self.amount.warm_up_runs:
            self.pace.check()
            time.sleep(PAUSE_S)
            sample = worker.ask("requests")
            for kind in sample.values():
                kind.pop("next_token_ms", None)  # of these runs only the sums are kept
            found.warm_up.append(sample)
            self._say("sample", index, job="warm_up", sample=sample)
            totals.append(sample["warm"]["total_ms"])
            spent_s = time.monotonic() - start
            if spent_s >= self.amount.warm_up_s and is_steady(totals):
                break
            if spent_s >= self.amount.most_warm_up_s and len(totals) > 1:
                break
        found.peak_memory_bytes = worker.ask("peak")["peak_memory_bytes"]
        self._say("warm", index)

    def _block(self) -> None:
        """Requests of all cells, raw calls of all but the control; then the same backwards."""
        block, start = len(self.session.blocks), time.monotonic()
        processes = [worker.process_id for worker in self.workers.values()]
        before = read_cpu_times(processes)
        last = len(self.cells) - 1
        jobs = [("requests", i) for i in self.workers]
        jobs += [("raw", i) for i, worker in self.workers.items() if i != last and "raw" in worker.jobs]
        forwards = [self._visit(*job, block) for job in jobs]
        backwards = [self._visit(*job, block) for job in reversed(jobs)][::-1]
        shares = shares_between(before, read_cpu_times(processes))
        self.session.blocks.append(shares)
        for (job, index), pair in zip(jobs, zip(forwards, backwards, strict=True), strict=True):
            if None not in pair:
                getattr(self.session.cells[index], job).append(pair)
        for index, worker in self.workers.items():
            self.session.cells[index].peak_memory_bytes = worker.ask("peak")["peak_memory_bytes"]
        seconds = time.monotonic() - start
        if block == 0 and self.number == 0:
            self.pace.first_block(seconds)
        left = self.pace.left_s(self.number, block, seconds)
        of = {"of_sessions": self.pace.sessions, "of_blocks": self.pace.blocks}
        self._say("block", 0, block=block, seconds=seconds, left_s=left, shares=shares, **of)

    def _visit(self, job: str, index: int, block: int) -> Sample | None:
        if index not in self.workers:  # it has failed meanwhile
            return None
        self._say("visit", index, job=job)
        time.sleep(PAUSE_S)
        sample: Sample | None = self._try(index, self.workers[index].ask, job)
        if sample is not None:
            self._say("sample", index, job=job, block=block, sample=sample)
        return sample


def _add_energy(session: Session, power: PowerWatch) -> None:
    """Joules of every answer's time in the place of that time, where power was read."""
    for cell in session.cells:
        for request in (*cell.warm_up, *(sample for pair in cell.requests for sample in pair)):
            for answer in request.values():
                with suppress(KeyError):
                    joules = power.joules(*answer.pop("window_s"))
                    if joules is not None:
                        answer["joules"] = {name: round(value, 4) for name, value in joules.items()}


def is_steady(totals: Sequence[float]) -> bool:
    """Whether the median of the last three is within `STEADY` of that of the three before."""
    if len(totals) < MIN_WARM_UP_RUNS:
        return False
    last, before = float(np.median(totals[-3:])), float(np.median(totals[-6:-3]))
    return abs(last - before) <= STEADY * before
