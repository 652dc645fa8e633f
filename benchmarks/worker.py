"""One cell of a comparison in its own process: `python -m tinyllava_edge.benchmarks.worker JSON`.

Opens one runtime with one pair of variants, then answers each line on its input with one line of JSON: a run
of the same request. Between runs it waits for input, so it takes no time from the cell that is measured.
"""

import hashlib
import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import TinyLlavaEdgeError
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.engine import Model
from tinyllava_edge.runtimes.registry import open_backends


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured.

    Attributes:
        name: unique in a comparison.
        runtime: name of the runtime.
        bundle: its directory.
        vision: variant, or None where the runtime has none (torch).
        language: likewise.
        checkpoint, sources, allow_pickle: for the torch runtime.
        threads: of the engines, or None for the runtime's own choice.
    """

    name: str
    runtime: str
    bundle: str
    vision: str | None
    language: str | None
    threads: int | None
    checkpoint: str | None = None
    sources: str | None = None
    allow_pickle: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every run does: one picture, one question, a fixed number of greedy tokens."""

    picture: str
    question: str
    num_tokens: int


def open_cell(cell: Cell) -> Model:
    """Open a cell's model so that no token ends its answer: every run is of the same length."""
    bundle = Bundle.open(Path(cell.bundle))
    no_token = bundle.manifest.language.vocab_size
    prompt = bundle.manifest.prompt.model_copy(update={"stop_ids": (no_token,)})
    endless = replace(bundle, manifest=bundle.manifest.model_copy(update={"prompt": prompt}))
    options = BackendOptions(
        vision=cell.vision,
        language=cell.language,
        threads=cell.threads,
        checkpoint=None if cell.checkpoint is None else Path(cell.checkpoint),
        sources=None if cell.sources is None else Path(cell.sources),
        allow_pickle=cell.allow_pickle,
    )
    return Model(endless, *open_backends(cell.runtime, bundle, options))


def measure_run(model: Model, request: Request) -> dict[str, Any]:
    """Run the request from nothing: the picture is encoded again, the context is empty."""
    model.forget()
    answer = "".join(model.chat(request.question, [request.picture], max_tokens=request.num_tokens))
    assert model.last_timings is not None
    timings = asdict(model.last_timings)
    return {**timings, "answer_sha256": hashlib.sha256(answer.encode()).hexdigest()}


def serve(cell: Cell, request: Request) -> None:
    """Answer every line of standard input with a run, until it ends."""
    # Whatever a native library prints must not get between the lines.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(value: dict[str, Any]) -> None:
        channel.write(json.dumps(value) + "\n")
        channel.flush()

    try:
        start = time.perf_counter()
        with open_cell(cell) as model:
            say({"load_s": time.perf_counter() - start})
            for _ in sys.stdin:
                run = measure_run(model, request)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                say({**run, "peak_memory_bytes": peak})
    except TinyLlavaEdgeError as error:
        say({"error": " ".join(str(error).split())})


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    serve(Cell(**task["cell"]), Request(**task["request"]))
