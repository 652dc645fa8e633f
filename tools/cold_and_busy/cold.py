"""From the start of a process to its first token: every sample is a process of its own, with one token.

Files are in the page cache, from visits before that count for nothing. Ours is the command `run`, from its
start to the first byte on its standard output; a rival is its row of `bench`, given the one request as soon
as it is open, and its own mark of the first token is taken (one clock for all processes).
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tinyllava_edge.benchmarks.bench.peers.rivals import RivalCell
from tinyllava_edge.benchmarks.bench.plan import Plan
from tinyllava_edge.benchmarks.bench.worker_process import Worker
from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.errors import BackendError

from .turns import Sample, Visit

PROGRAM = Path(sys.executable).with_name("tinyllava-edge")
KNOWN, COMPILED = ", known picture", ", compiled before"
NO_ONE_SHOT = ("llama_server", "onnx_decoder")  # a server, and what sees no picture
_STORE_MB = 4000


@dataclass(frozen=True)
class Start:
    """A row: what is measured, and what is done before, as a user who was here before has done it."""

    visit: Visit
    before: Visit


def starts(plan: Plan, folder: Path) -> Iterator[tuple[str, Start]]:
    """Our cells, each with and without a store that knows the picture from another question; then rivals.

    OpenVINO's come twice, too: with the cache of compiled models that the library offers, and without.
    """
    asked, other = plan.request.question, plan.request.second_question
    for cell in plan.cells[:-1]:
        for name, more in (("", ()), (KNOWN, ("--store-mb", str(_STORE_MB)))):
            run = partial(_run, cell, plan.request.picture, folder, more)
            yield cell.name + name, Start(partial(run, asked), partial(run, other))
    for rival in plan.rivals:
        if rival.task.rival in NO_ONE_SHOT:
            continue
        short = replace(rival, task=replace(rival.task, num_tokens=1))
        found = [(rival.name, short)]
        if rival.task.rival == "openvino_llava":
            properties = {"CACHE_DIR": str(folder / rival.name)}
            task = replace(short.task, settings={**short.task.settings, "properties": properties})
            found.append((rival.name + COMPILED, replace(short, task=task)))
        for name, one in found:
            visit = partial(_ask_once, one, plan)
            yield name, Start(visit, visit)


def _run(cell: Cell, picture: str, cache: Path, more: Sequence[str], question: str) -> Sample:
    """One question to the program itself, in a private cache.

    Raises:
        BackendError: it failed.
    """
    names = ("vision", "language", "threads", "checkpoint")
    given = {name: getattr(cell.options, name) for name in names}
    options = [word for name, value in given.items() if value for word in (f"--{name}", str(value))]
    command = [str(PROGRAM), "run", str(cell.bundle), picture, question, "--runtime", cell.runtime]
    env, log = {**os.environ, "XDG_CACHE_HOME": str(cache)}, cache / "run.log"
    began = time.monotonic()
    with (
        log.open("wb") as words,
        subprocess.Popen(
            [*command, *options, "--max-tokens", "1", *more],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, env=env, bufsize=0,
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        first, at = process.stdout.read(1), time.monotonic()
        process.stdout.read()
    if process.returncode or not first:
        said = log.read_text(encoding="utf-8", errors="replace").strip() or "nothing"
        raise BackendError(f"{cell.name}: run ended with code {process.returncode} and said {said[-300:]}")
    return {"first_token_ms": 1000 * (at - began), "ended_ms": 1000 * (time.monotonic() - began)}


def _ask_once(rival: RivalCell, plan: Plan) -> Sample:
    """The request to a rival that is started for it.

    Raises:
        BackendError: it failed.
    """
    began = time.monotonic()
    with closing(Worker(rival, plan.request)) as worker:
        worker.open()
        opened_ms = 1000 * (time.monotonic() - began)
        found = worker.ask("requests")["warm"]
    asked_ms = 1000 * (found["window_s"][0] - began)
    return {"first_token_ms": asked_ms + found["first_token_ms"], "opened_ms": opened_ms}
