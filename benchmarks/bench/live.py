"""Figures as they are measured: lines for who waits, and every raw sample in a file as it comes."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from tinyllava_edge.atomic_files import check_output
from tinyllava_edge.console import note

_EVERY_S = 5.0  # between two tables; the first block of a session, and its last one, always have theirs
_SUFFIX = ".samples.jsonl"
_FIRST_KEY = "bench"
Event = dict[str, Any]


class Live:
    """Says in lines what the measurement announces: each method but the first is called by an event's name.

    Args:
        say: shows a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._runs: dict[str, list[Event]] = defaultdict(list)
        self._said = 0.0

    def __call__(self, event: Event) -> None:
        """What happened."""
        if (tell := getattr(self, f"_{event['event']}", None)) is not None:
            tell(event)

    def _roof(self, event: Event) -> None:
        rates = [f"{kind} {rate:.0f} GFLOP/s" for kind, rate in event["gflops"].items()]
        said = f"{', '.join(rates)}, {event['read_gb_per_s']:.1f} GB/s read, {event['threads']} threads"
        self._say(f"this machine: {said}")

    def _grown(self, event: Event) -> None:
        self._say(f"growth: round {event['round'] + 1} of {event['of_rounds']} done")

    def _curve(self, event: Event) -> None:
        fit = event["exponent"]
        said = f"{fit['exponent']:.2f} [{fit['low']:.2f}, {fit['high']:.2f}]" if fit else "unknown"
        self._say(f"growth of {event['stage']} with {event['axis']}: exponent {said}")

    def _alone(self, event: Event) -> None:
        if event["load_cold_s"] is not None:
            self._say(f"{event['cell']}: loads cold in {event['load_cold_s']:.2f} s")

    def _opened(self, event: Event) -> None:
        self._say(f"{event['cell']}: loads warm in {event['load_warm_s']:.2f} s")

    def _sample(self, event: Event) -> None:
        if event["job"] in ("warm_up", "requests"):
            self._runs[event["cell"]].append(event)

    def _warm(self, event: Event) -> None:
        """Its warm-up has ended, and with it the only runs so far of this session."""
        runs = [run for run in self._runs[event["cell"]] if run["job"] == "warm_up"]
        totals = [run["sample"]["warm"]["total_ms"] for run in runs]
        self._runs[event["cell"]] = [run for run in self._runs[event["cell"]] if run["job"] != "warm_up"]
        first, last = totals[0], median(totals[-3:])
        self._say(f"{event['cell']}: warm after {len(totals)} requests, {first:.1f} -> {last:.1f} ms")

    def _failed(self, event: Event) -> None:
        self._say(f"{event['cell']}: FAILED, the others go on without it: {event['why']}")

    def _block(self, event: Event) -> None:
        last = event["block"] + 1 == event["of_blocks"]
        if event["block"] and not last and time.monotonic() - self._said < _EVERY_S:
            return
        self._said = time.monotonic()
        self._say(
            f"session {event['session'] + 1} of {event['of_sessions']}, block {event['block'] + 1} of "
            f"{event['of_blocks']}, {time_text(event['left_s'])} left; medians so far:"
        )
        for line in self._table():
            self._say(line)

    def _table(self) -> Iterator[str]:
        width = max(map(len, self._runs))
        baseline = None
        for name, runs in self._runs.items():
            warm = [run["sample"]["warm"] for run in runs]
            if not warm:
                continue
            total, first = (median(run[key] for run in warm) for key in ("total_ms", "first_token_ms"))
            token = median(
                (run["total_ms"] - run["first_token_ms"]) / (run["generated_tokens"] - 1) for run in warm
            )
            faster = "" if baseline is None else f", x{baseline / total:.2f}"
            baseline = baseline or total
            yield (
                f"  {name:<{width}} {total:8.1f} ms, first token {first:.1f}, per token {token:.2f}, "
                f"{len(warm)} runs{faster}"
            )


def time_text(seconds: float) -> str:
    """A stretch of time in one unit."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def samples_path(output: Path) -> Path:
    """Where the raw samples of a report that is being measured lie: beside it, until it is there."""
    return output.with_name(output.name + _SUFFIX)


def samples_mark(path: Path) -> str:
    """Whether a file is what `kept_samples` wrote: see `atomic_files.Mark`."""
    with path.open(encoding="utf-8") as file:
        first = json.loads(file.readline(1 << 20))
    return "" if _FIRST_KEY in first else "has no samples of a bench"


@contextmanager
def kept_samples(output: Path | None, about: Event, *, force: bool) -> Iterator[Callable[[Event], None]]:
    """What writes each event as a line, at once; the file goes when the report, which has it all, is there.

    Args:
        output: the report, or None where nothing is kept.
        about: what is measured, the first line.
        force: replace what a killed run left.

    Raises:
        OutputExistsError: a killed run left its samples, and `force` is false.
    """
    if output is None:
        yield lambda event: None
        return
    path = samples_path(output)
    check_output(path, force=force, mark=samples_mark)
    written = 0
    with path.open("w", encoding="utf-8") as file:

        def write(event: Event) -> None:
            nonlocal written
            if event["event"] != "visit":
                file.write(json.dumps(event) + "\n")
                file.flush()
                written += event["event"] == "sample"

        file.write(json.dumps({_FIRST_KEY: about}) + "\n")
        try:
            yield write
        except BaseException:
            if written:
                note(f"the {written} samples so far: {path}")
                raise
            path.unlink()
            raise
    path.unlink()
