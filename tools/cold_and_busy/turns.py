"""Rows visited in turns, as bench's blocks visit theirs: all in order, then in reverse."""

from collections.abc import Callable, Mapping
from typing import Any

from tinyllava_edge.benchmarks.bench.ratios import Ratio, paired_ratio
from tinyllava_edge.console import note
from tinyllava_edge.errors import BackendError

Sample = dict[str, Any]
Visit = Callable[[], Sample]
Pairs = list[tuple[Sample, Sample]]


def in_turns(rows: Mapping[str, Visit], rounds: int, failed: dict[str, str]) -> dict[str, Pairs]:
    """Of each row the pairs of all rounds in which it answered twice.

    A row that fails is put into `failed` with its reason, and is visited no more.
    """
    found: dict[str, Pairs] = {name: [] for name in rows}
    for number in range(rounds):
        order = [name for name in rows if name not in failed]
        visits: dict[str, list[Sample]] = {name: [] for name in order}
        for name in (*order, *reversed(order)):
            try:
                visits[name] += [rows[name]()] if name not in failed else []
            except BackendError as error:
                leave_out(name, error, failed)
        for name, samples in visits.items():
            if len(samples) == 2:
                found[name].append((samples[0], samples[1]))
        note(f"round {number + 1} of {rounds}")
    return found


def leave_out(name: str, why: Exception, failed: dict[str, str]) -> None:
    """Say that a row failed, and remember it."""
    failed[name] = str(why)
    note(f"{name}: FAILED, the others go on without it: {why}")


def ratio_of(one: list[Pairs], other: list[Pairs], metric: str) -> Ratio | None:
    """One row's times over another's, each a list of sessions, with the interval of neighbouring pairs."""
    times = ([[[s[metric] for s in pair] for pair in pairs] for pairs in row] for row in (one, other))
    return paired_ratio(*times)


def text_of(ratio: Ratio | None) -> str:
    """A ratio with its interval."""
    return "-" if ratio is None else f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
