"""How the stages of one row grow with visual tokens, text, pictures and context, with fitted exponents.

An exponent is the slope of a line through the logarithms: 1 is time in proportion to the amount, 2 to its
square.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.bundle import Bundle

from .worker import Request
from .worker_process import Worker

Record = dict[str, Any]
# Method of `grow.Grower` -> what a point's x is.
AXES = {
    "visual_tokens": "visual tokens",
    "text": "positions of a text",
    "pictures": "pictures",
    "context": "positions in the context",
}
ROUNDS = 5
RESAMPLES = 2000
_ROOM = 64  # positions of the context that stay free: of the prompt, and of the tokens that are decoded
_MOST_POSITIONS = 2048


def amounts_of(bundle: Bundle, context_length: int) -> dict[str, list[int]]:
    """What is measured on each axis, as far as the context has room.

    Args:
        bundle: says how many tokens a picture has.
        context_length: of the opened backend.
    """
    room = min(context_length - _ROOM, _MOST_POSITIONS)
    tokens = bundle.manifest.vision.num_tokens
    wanted = {
        "visual_tokens": [max(1, tokens // 4), max(2, tokens // 2), tokens, 2 * tokens, 4 * tokens],
        "text": [16, 32, 64, 128, 256, 512, 1024],
        "pictures": [1, 2, 3, 4],
        "context": [32, 64, 128, 256, 512, 1024, 2048],
    }
    positions = {"visual_tokens": 1.0, "text": 2.0, "pictures": float(tokens), "context": 1.0}  # a word's: 2
    return {
        axis: [amount for amount in amounts if amount * positions[axis] <= room]
        for axis, amounts in wanted.items()
    }


def measure_growth(
    cell: Cell,
    request: Request,
    bundle: Bundle,
    check: Callable[[], None],
    on_event: Callable[[Record], None],
    points: list[Record],
) -> None:
    """Measure all points of one row in a process of its own, in another order each round.

    Args:
        cell: the row.
        request: has the picture.
        bundle: the row's.
        check: called before each point; may end it.
        on_event: called with each point, and after each round.
        points: of the axes, filled as they come.

    Raises:
        BackendError: the cell cannot be opened, or a point not be measured.
    """
    order = random.Random(0)
    with closing(Worker(cell, request)) as worker:
        context_length = worker.open()["context_length"]
        amounts = amounts_of(bundle, context_length)
        wanted = [(axis, amount) for axis, its in amounts.items() for amount in its]
        for axis, its in amounts.items():  # each shape once before it is timed
            for amount in its:
                check()
                worker.ask("grow", axis=axis, amount=amount)
        for number in range(ROUNDS):
            order.shuffle(wanted)
            for axis, amount in wanted:
                check()
                points.append({"axis": axis, **worker.ask("grow", axis=axis, amount=amount)})
                on_event({"event": "sample", "job": "grow", "cell": cell.name, "sample": points[-1]})
            on_event({"event": "grown", "round": number, "of_rounds": ROUNDS})


def growth_record(cell: str, points: Sequence[Record]) -> Record:
    """Every point, and the exponent of each stage on each axis with its 95 % interval."""
    collected: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        for stage, ms in point["ms"].items():
            collected[point["axis"], stage][point["x"]].append(round(ms, 4))
    return {
        "cell": cell,
        "curves": [
            {
                "axis": axis,
                "stage": stage,
                "points": [{"x": x, "ms": by_x[x]} for x in sorted(by_x)],
                "exponent": fitted_exponent(by_x),
            }
            for (axis, stage), by_x in collected.items()
            if len(by_x) > 1
        ],
    }


def fitted_exponent(by_x: dict[int, list[float]], *, seed: int = 0) -> Record | None:
    """Slope of log(ms) over log(x) through the medians, with the interval of a bootstrap over the runs.

    None for fewer than three amounts, which fit almost any line.
    """
    if len(by_x) < 3:
        return None
    rng = np.random.default_rng(seed)
    logs = np.log(sorted(by_x))
    runs = [np.asarray(by_x[x]) for x in sorted(by_x)]
    medians = np.array([np.median(run) for run in runs])
    drawn = np.stack(
        [np.median(run[rng.integers(len(run), size=(RESAMPLES, len(run)))], axis=1) for run in runs], axis=1
    )  # [resamples, amounts]
    centred = logs - logs.mean()
    slopes = np.log(drawn) @ centred / (centred @ centred)
    low, high = np.percentile(slopes, [2.5, 97.5])
    middle = float(np.log(medians) @ centred / (centred @ centred))
    return {"exponent": middle, "low": float(low), "high": float(high)}
