"""The same request for minutes: does the device keep its speed? `python -m ... BUNDLE RUNTIME MINUTES`.

Prints a line of JSON: of each minute the median answer, power, temperatures and clocks; and the last minute's
time over the first one's.
"""

import sys
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from tinyllava_edge.benchmarks.bench.plan import plan_cells
from tinyllava_edge.benchmarks.bench.power import watched_power, whole_of
from tinyllava_edge.benchmarks.bench.state import read_clocks, read_temperatures
from tinyllava_edge.benchmarks.bench.worker import Request
from tinyllava_edge.benchmarks.bench.worker_process import Worker
from tinyllava_edge.benchmarks.evals.cells import Wish, named_bundles
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.console import note, print_json
from tinyllava_edge.reference_tensors import reference_pictures
from tinyllava_edge.runtimes.registry import choose_runtime, language_target

Record = dict[str, Any]


def soak(bundle: Bundle, runtime: str, minutes: float, minute_s: float = 60.0) -> Record:
    """Ask again and again.

    Args:
        bundle: what to ask.
        runtime: with its default variants.
        minutes: how long.
        minute_s: length of a row; tests have shorter ones.
    """
    bundles = named_bundles([bundle])
    language = bundle.variant("language", target=language_target(choose_runtime(runtime))).name
    cell = plan_cells(bundles, Wish(runtimes=(runtime,), language=(language,)))[0]
    picture = str(reference_pictures(bundle)[0])
    request = Request(
        picture=picture, question="What is this?", second_question="What colour?", num_tokens=64
    )
    rows: list[Record] = []
    with watched_power() as power, closing(Worker(cell, request)) as worker:
        worker.read()
        worker.ask("requests")
        while len(rows) < max(1, round(minutes)):
            start = time.monotonic()
            times: list[float] = []
            while not times or time.monotonic() - start < minute_s:
                times.append(worker.ask("requests")["warm"]["total_ms"])
            joules = power.joules(start + 0.2, power.samples[-1][0]) if power.samples else None
            rows.append(
                {
                    "answers": len(times),
                    "total_ms": round(median(times), 3),
                    "whole_w": joules
                    and round(whole_of(joules)[1] / (power.samples[-1][0] - start - 0.2), 3),
                    "temperatures_c": read_temperatures(),
                    "clocks": read_clocks(),
                }
            )
            note(f"soak: minute {len(rows)}, {rows[-1]['total_ms']:.1f} ms")
    slower = rows[-1]["total_ms"] / rows[0]["total_ms"]
    return {"cell": cell.name, "runtime": runtime, "power": power.source, "slower": slower, "minutes": rows}


if __name__ == "__main__":
    name, runtime_name, length = sys.argv[1:]
    print_json(
        soak(Bundle.open(Path(bundle_path(name))), runtime_name, float(length), min(60.0, 60 * float(length)))
    )
