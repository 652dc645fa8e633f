"""Measure several cells against each other, interleaved, so that a drifting machine hits all of them alike.

Source of the protocol: spec/reliability_bench_parity.md sections B2, B3 and B7. A block runs every cell once
in order and once in reverse (A B B A for two cells); every cell lives in its own process and is warm.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from tinyllava_edge.errors import BackendError

from .worker import Cell, Request

WARM_UP_RUNS = 3
PAUSE_S = 0.02  # for threads that still wait for work to fall asleep
Sample = dict[str, Any]


@dataclass
class CellResult:
    """Everything one cell gave.

    Attributes:
        cell: what was measured.
        load_s: opening the model, in a process that had just begun.
        warm_up: runs before the measurement, the first of them cold.
        blocks: pairs of runs, one forwards and one backwards in each block.
    """

    cell: Cell
    load_s: float = 0.0
    warm_up: list[Sample] = field(default_factory=list)
    blocks: list[tuple[Sample, Sample]] = field(default_factory=list)

    @property
    def samples(self) -> list[Sample]:
        """All measured runs."""
        return [sample for block in self.blocks for sample in block]


def measure_cells(
    cells: Sequence[Cell],
    request: Request,
    num_blocks: int,
    on_run: Callable[[str], None] = lambda name: None,
) -> list[CellResult]:
    """Measure all cells in interleaved blocks.

    Args:
        cells: what to measure; their order is the order in a block.
        request: what every run does.
        num_blocks: each gives two runs of every cell.
        on_run: called with a cell's name before each of its runs; there are `count_runs` of them.

    Raises:
        BackendError: a cell cannot be opened here, or its process ended.
    """
    results = [CellResult(cell) for cell in cells]
    with ExitStack() as stack:
        workers = [stack.enter_context(_opened(cell, request)) for cell in cells]
        for result, worker in zip(results, workers, strict=True):
            result.load_s = worker.read()["load_s"]

        def run(index: int) -> Sample:
            on_run(cells[index].name)
            time.sleep(PAUSE_S)
            return workers[index].run()

        for index, result in enumerate(results):
            result.warm_up = [run(index) for _ in range(WARM_UP_RUNS)]
        for _ in range(num_blocks):
            forwards = [run(index) for index in range(len(cells))]
            backwards = [run(index) for index in reversed(range(len(cells)))][::-1]
            for result, one, other in zip(results, forwards, backwards, strict=True):
                result.blocks.append((one, other))
    return results


def count_runs(num_cells: int, num_blocks: int) -> int:
    """Runs that `measure_cells` announces."""
    return num_cells * (WARM_UP_RUNS + 2 * num_blocks)


class _Worker:
    """The process of one cell."""

    def __init__(self, cell: Cell, process: "subprocess.Popen[str]") -> None:
        self._cell = cell
        self._process = process

    def run(self) -> Sample:
        """One run of the request."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self.read()

    def read(self) -> Sample:
        """The next line that the process says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise BackendError(f"{self._cell.name}: its process ended with code {code}; its words are above.")
        said: Sample = json.loads(line)
        if "error" in said:
            raise BackendError(f"{self._cell.name}: {said['error']}")
        return said


@contextmanager
def _opened(cell: Cell, request: Request) -> Iterator[_Worker]:
    task = json.dumps({"cell": asdict(cell), "request": asdict(request)})
    command = [sys.executable, "-m", "tinyllava_edge.benchmarks.worker", task]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield _Worker(cell, process)
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()  # the end of its input ends the process
        process.wait()
