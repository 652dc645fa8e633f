"""Measure several cells against each other, interleaved, so that a drifting machine hits all of them alike.

Source of the protocol: docs/sources/measuring.md#warm-up-and-repeats and
docs/sources/measuring.md#interleaved-pairs. In a session every cell is opened anew, in a process of its own,
and warmed up; then come blocks, each of which visits every cell in order and then in reverse (A B B A).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyllava_edge.benchmarks.evals.questions import Question
from tinyllava_edge.benchmarks.evals.scores import summarize

from .device_memory import watched_device
from .machine_load import Shares, evict, read_cpu_times, shares_between
from .power import ABSENT, PowerWatch
from .worker import Cell, Request
from .worker_process import Sample, Worker

MIN_WARM_UP_RUNS, MAX_WARM_UP_RUNS = 6, 20
STEADY = 0.05  # how far apart the medians of the last three and the three before may be
PAUSE_S = 0.02  # for threads that still wait for work to fall asleep
Pair = tuple[Sample, Sample]  # of one block, forwards and backwards


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured: `blocks` in each of `sessions`, each giving two runs of every cell.

    `warm_up_s` is the least time that a cell is warmed up for in a session.
    """

    sessions: int
    blocks: int
    warm_up_s: float = 2.0

    @property
    def runs(self) -> int:
        """Runs of each cell."""
        return 2 * self.sessions * self.blocks

    def visits(self, num_cells: int) -> int:
        """Visits that `measure_cells` announces, warm-up aside: the last cell has no raw calls."""
        return self.runs * (2 * num_cells - 1)


@dataclass
class CellSession:
    """What one cell gave in one session.

    Attributes:
        load_cold_s: opening it after its files had left the page cache, or None where they would not leave.
        load_warm_s: opening it again, in another new process.
        facts: what was opened.
        warm_up: requests before the measurement, the first of them the first one of its process.
        requests: measured ones.
        raw: the backend calls of the request alone; none for the control.
        peak_memory_bytes: of the process, on the host.
        device_peak_bytes: of the GPU, while the cell answered alone; None without one. With `device_memory`.
    """

    load_cold_s: float | None
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


def measure_cells(
    cells: Sequence[Cell],
    request: Request,
    amount: Amount,
    files: Mapping[str, Sequence[Path]],
    on_run: Callable[[str], None] = lambda name: None,
    power: PowerWatch | None = None,
) -> list[Session]:
    """Measure all cells in interleaved blocks.

    Args:
        cells: what to measure; their order is the order in a block. The last one is the control.
        request: what every run does.
        amount: how many sessions and blocks.
        files: of each cell by its name: what it reads its weights from.
        on_run: called with a cell's name before each visit that is measured.
        power: what is read meanwhile; every answer then has the joules of its time.

    Raises:
        BackendError: a cell cannot be opened here, or its process ended.
    """
    sessions = []
    for _ in range(amount.sessions):
        # All cold loads first: a process that has a file mapped keeps it in memory.
        session = Session([_measure_alone(cell, request, files[cell.name]) for cell in cells])
        sessions.append(session)
        with ExitStack() as stack:
            workers = []
            for cell, found in zip(cells, session.cells, strict=True):
                worker = stack.enter_context(closing(Worker(cell, request)))
                found.facts = worker.read()
                found.load_warm_s = found.facts.pop("load_s")
                workers.append(worker)
            for worker, found in zip(workers, session.cells, strict=True):
                found.warm_up = list(_warm_up(worker, amount.warm_up_s))
            for worker in workers[:-1]:
                worker.ask("raw")  # the first time it writes the calls down
            for _ in range(amount.blocks):
                _measure_block(workers, session, on_run)
            for worker, found in zip(workers, session.cells, strict=True):
                found.peak_memory_bytes = worker.ask("peak")["peak_memory_bytes"]
        _add_energy(session, power or PowerWatch(ABSENT))
    return sessions


def _measure_block(workers: "Sequence[Worker]", session: Session, on_run: Callable[[str], None]) -> None:
    """Requests of all cells, raw calls of all but the control; then the same backwards."""

    def visit(job: str, index: int) -> Sample:
        on_run(workers[index].name)
        time.sleep(PAUSE_S)
        return workers[index].ask(job)

    processes = [worker.process_id for worker in workers]
    before = read_cpu_times(processes)
    jobs = [("requests", i) for i in range(len(workers))] + [("raw", i) for i in range(len(workers) - 1)]
    forwards = [visit(*job) for job in jobs]
    backwards = [visit(*job) for job in reversed(jobs)][::-1]
    session.blocks.append(shares_between(before, read_cpu_times(processes)))
    for (job, index), pair in zip(jobs, zip(forwards, backwards, strict=True), strict=True):
        getattr(session.cells[index], job).append(pair)


def _measure_alone(cell: Cell, request: Request, files: Sequence[Path]) -> CellSession:
    """Its cold load, and what a GPU holds for it: the other cells are not open yet."""
    is_cold = evict(files)
    with watched_device() as device:
        found = CellSession(None)
        if not is_cold and device is None:
            return found
        with closing(Worker(cell, request)) as worker:
            if device is not None:
                device.process = worker.process_id
            load_s = float(worker.read()["load_s"])
            found.load_cold_s = load_s if is_cold else None
            if device is not None:
                worker.ask("requests")
                found.device_peak_bytes = device.peak_bytes()
    return found


def _add_energy(session: Session, power: PowerWatch) -> None:
    """Joules of every answer's time in the place of that time, where power was read."""
    for cell in session.cells:
        for request in (*cell.warm_up, *(sample for pair in cell.requests for sample in pair)):
            for answer in request.values():
                joules = power.joules(*answer.pop("window_s"))
                if joules is not None:
                    answer["joules"] = {name: round(value, 4) for name, value in joules.items()}


def _warm_up(worker: "Worker", least_s: float) -> Iterator[Sample]:
    """Requests until their time is steady, or there were `MAX_WARM_UP_RUNS`."""
    totals: list[float] = []
    start = time.monotonic()
    while len(totals) < MAX_WARM_UP_RUNS:
        time.sleep(PAUSE_S)
        sample = worker.ask("requests")
        for kind in sample.values():
            kind.pop("next_token_ms")  # of these runs only the sums are kept
        yield sample
        totals.append(sample["warm"]["total_ms"])
        if time.monotonic() - start >= least_s and is_steady(totals):
            return


def is_steady(totals: Sequence[float]) -> bool:
    """Whether the median of the last three is within `STEADY` of that of the three before."""
    if len(totals) < MIN_WARM_UP_RUNS:
        return False
    last, before = float(np.median(totals[-3:])), float(np.median(totals[-6:-3]))
    return abs(last - before) <= STEADY * before


@dataclass(frozen=True)
class Quality:
    """Questions to score every cell with, the file that they are from, and the folder of their pictures."""

    path: Path
    images: Path
    questions: Sequence[Question]


def score_cells(
    cells: Sequence[Cell], request: Request, quality: Quality, on_answer: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Scores of each cell by its name, seeing and blind, and how its answers differ from the first one's.

    Raises:
        BackendError: a cell cannot be opened.
    """
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        with closing(Worker(cell, request)) as worker:
            worker.read()
            files = {"questions": str(quality.path), "images": str(quality.images)}
            found[cell.name] = worker.ask("answers", on_answer, **files)
    first = found[cells[0].name]["seeing"]
    return {
        name: summarize(quality.questions, answers["seeing"], answers["blind"], first)
        for name, answers in found.items()
    }
