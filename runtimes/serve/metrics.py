"""Counters and histograms in Prometheus' text format, version 0.0.4.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from tinyllava_edge.runtimes.timings import Timings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "tinyllava_edge_"
_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_NEXT_TOKEN_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
HISTOGRAMS = {
    "time_to_first_token_seconds": (
        "From taking a request, queue included, to its first text.",
        _FIRST_TOKEN_S,
    ),
    "time_per_output_token_seconds": ("Mean time of an answer's tokens after the first one.", _NEXT_TOKEN_S),
}
COUNTERS = {
    "requests_total": "Requests by route and status; 499 where the client went away first.",
    "tokens_total": "Tokens by kind: prompt, cached (of the prompt, not computed again), completion.",
    "answers_total": "Answers by what ended them.",
}
GAUGES = {"queue_depth": "Requests that wait.", "running": "Requests that are being answered."}
Labels = tuple[tuple[str, str], ...]


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Metrics:
    """What a server did since it began; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[tuple[str, Labels]] = Counter()
        self._histograms: dict[tuple[str, str], _Histogram] = {}

    def requested(self, route: str, status: int) -> None:
        """A request ended."""
        with self._lock:
            self._counters["requests_total", (("route", route), ("status", str(status)))] += 1

    def first_token(self, model: str, seconds: float) -> None:
        """The first text of an answer was handed out."""
        self._add("time_to_first_token_seconds", model, seconds)

    def answered(self, model: str, timings: Timings) -> None:
        """An answer ended, whatever ended it."""
        if timings.next_token_ms:
            mean_ms = sum(timings.next_token_ms) / len(timings.next_token_ms)
            self._add("time_per_output_token_seconds", model, mean_ms / 1000)
        with self._lock:
            for kind, tokens in (
                ("prompt", timings.prompt_tokens),
                ("cached", timings.reused_tokens),
                ("completion", timings.generated_tokens),
            ):
                self._counters["tokens_total", (("model", model), ("kind", kind))] += tokens
            self._counters["answers_total", (("model", model), ("finish", timings.finish))] += 1

    def text(self, gauges: dict[str, dict[str, int]]) -> str:
        """All of it; `gauges` has the present values, by name and model."""
        with self._lock:
            return "".join(f"{line}\n" for line in self._lines(gauges))

    def _add(self, name: str, model: str, value: float) -> None:
        with self._lock:
            self._histograms.setdefault((name, model), _Histogram(HISTOGRAMS[name][1])).add(value)

    def _lines(self, gauges: dict[str, dict[str, int]]) -> Iterator[str]:
        for name, explained in COUNTERS.items():
            yield from _head(name, explained, "counter")
            for (counter, labels), value in sorted(self._counters.items()):
                if counter == name:
                    yield f"{_PREFIX}{name}{_labels(labels)} {value}"
        for name, explained in GAUGES.items():
            yield from _head(name, explained, "gauge")
            for model, value in gauges[name].items():
                yield f"{_PREFIX}{name}{_labels((('model', model),))} {value}"
        for name, (explained, _) in HISTOGRAMS.items():
            yield from _head(name, explained, "histogram")
            for (histogram, model), found in sorted(self._histograms.items(), key=lambda item: item[0]):
                if histogram == name:
                    yield from _histogram_lines(name, model, found)


def _histogram_lines(name: str, model: str, found: _Histogram) -> Iterator[str]:
    total = 0
    for bound, count in zip((*map(str, found.bounds), "+Inf"), found.counts, strict=True):
        total += count
        yield f"{_PREFIX}{name}_bucket{_labels((('model', model), ('le', bound)))} {total}"
    yield f"{_PREFIX}{name}_sum{_labels((('model', model),))} {found.sum:.6f}"
    yield f"{_PREFIX}{name}_count{_labels((('model', model),))} {total}"


def _head(name: str, explained: str, kind: str) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {explained}"
    yield f"# TYPE {_PREFIX}{name} {kind}"


def _labels(labels: Labels) -> str:
    shown = (f'{name}="{_escaped(value)}"' for name, value in labels)
    return "{" + ",".join(shown) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
