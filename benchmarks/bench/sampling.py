"""Values that something gives again and again, collected by a thread with the time of each."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Sampler(Generic[T]):
    """Collects until it is closed; the thread that measures only waits meanwhile.

    Times are `time.monotonic`'s, which all processes of a machine share.

    Args:
        readings: what is collected; it takes its own time between two of them.
        stop: ends `readings` where it waits for somebody else.
    """

    def __init__(self, readings: Iterator[T], stop: Callable[[], None] = lambda: None) -> None:
        self.samples: list[tuple[float, T]] = []
        self._readings, self._end, self._closed = readings, stop, threading.Event()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        for value in self._readings:
            self.samples.append((time.monotonic(), value))
            if self._closed.is_set():
                return

    def close(self) -> None:
        """Stop collecting; what was collected stays."""
        self._closed.set()
        self._end()
        self._thread.join(timeout=5)


def polled(read: Callable[[], T], interval_s: float) -> Iterator[T]:
    """What a function returns, asked for every so often."""
    while True:
        yield read()
        time.sleep(interval_s)
