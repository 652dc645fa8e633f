"""The thread that uses a model, or several that use parts of it, and the queue in front of them."""

import math
import sys
import threading
import time
import traceback
from collections import deque
from contextlib import closing
from pathlib import Path

from tinyllava_edge.runtimes.model import Model

from .errors import ApiError, is_ours, told
from .jobs import FairQueue, Job, Piece
from .metrics import Metrics

MAX_WAITING = 32
_REMEMBERED = 32  # answers whose time says how long the next one may take
_GUESS_S = 1.0  # before any was measured


class Served:
    """A model, its threads and its queue.

    Args:
        name: what clients call it.
        model: opened; closed by `close`.
        metrics: counts what it does.
        max_waiting: requests that may wait.
        parallel: requests that are answered at the same time.

    Raises:
        UsageError: the model answers one at a time only.
        BackendError: there is no memory for so many.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        metrics: Metrics,
        *,
        max_waiting: int = MAX_WAITING,
        parallel: int = 1,
    ) -> None:
        self.name, self.model, self.metrics = name, model, metrics
        self.created = int(time.time())
        self._queue = FairQueue(max_waiting)
        self._spent_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._running: dict[Model, Job] = {}
        self._models = [model] if parallel == 1 else model.divide(parallel)
        self._threads = [
            threading.Thread(target=self._work, args=(each,), name=f"answer {name}", daemon=True)
            for each in self._models
        ]
        for thread in self._threads:
            thread.start()

    @property
    def fingerprint(self) -> str:
        """Of what answers: the bundle's manifest."""
        return f"fp_{self.model.bundle.manifest_sha256[:12]}"

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def num_answering(self) -> int:
        """Requests that are being answered."""
        return len(self._running)

    def submit(self, job: Job) -> None:
        """Let a request wait for its turn; one that has no place in the queue is told 429."""
        gone = self._queue.put(job)
        if gone is not None:
            gone.stop(self._full())

    def withdraw(self, job: Job, why: ApiError | None = None) -> None:
        """End a request wherever it is."""
        self._queue.remove(job)
        job.stop(why)

    def stop_taking(self) -> None:
        """From now on requests are refused, those that wait too; the one that runs goes on."""
        for job in self._queue.close():
            job.stop(stopping())

    def end_running(self) -> None:
        """End the answers that run at their next token."""
        for job in list(self._running.values()):
            job.stop(stopping())

    def close(self, within_s: float) -> None:
        """Free the model, if its threads end in time; a library that computes is not interrupted."""
        self.stop_taking()
        self.end_running()
        ends = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            self.model.close()  # and with it those that it was divided into

    def _full(self) -> ApiError:
        """429, with the seconds in which all that waits now is answered."""
        mean_s = sum(self._spent_s) / len(self._spent_s) if self._spent_s else _GUESS_S
        after = str(max(1, math.ceil(mean_s * (self.num_waiting + 1) / len(self._models))))
        message = f"{self.num_waiting} requests wait already; try again in {after} s."
        return ApiError(429, message, code="queue_full", headers={"Retry-After": after})

    def _work(self, model: Model) -> None:
        while (job := self._queue.take()) is not None:
            self._running[model] = job
            started = time.monotonic()
            try:
                if not job.stopped:
                    self._answer(model, job)
            except Exception as error:
                self._report(error)
                job.tell(told(error))
            finally:
                del self._running[model]
                if not job.stopped:  # one that nobody wanted any more says nothing of the next
                    self._spent_s.append(time.monotonic() - started)

    def _answer(self, model: Model, job: Job) -> None:
        with closing(job.ask(model)) as stream:
            job.stream = stream
            if job.stopped:  # while it was begun
                stream.cancel()
            shown = 0
            for piece in stream:
                entries = list((stream.logprobs or ())[shown:])
                shown += len(entries)
                job.tell(Piece(piece, entries))
            rest = list((stream.logprobs or ())[shown:])
        if rest:
            job.tell(Piece("", rest))
        if stream.timings is not None:
            self.metrics.answered(self.name, stream.timings)
            if not job.stopped:
                job.tell(stream.timings)

    def _report(self, error: Exception) -> None:
        """The owner sees what the client does not."""
        if is_ours(error):
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error}"
            sys.stderr.write(f"tinyllava-edge: {self.name}: {' '.join(line.split())}\n")


def stopping() -> ApiError:
    """What is told of requests when the server ends."""
    return ApiError(503, "the server is stopping.", code="stopping", headers={"Retry-After": "10"})
