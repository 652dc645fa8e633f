"""Requests that wait for a model: a bounded queue in which no client keeps the others out."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tinyllava_edge.runtimes.model import Model
from tinyllava_edge.runtimes.stream import Stream
from tinyllava_edge.runtimes.timings import Timings

from .errors import ApiError


@dataclass(frozen=True)
class Piece:
    """Text of an answer, often empty where only tokens came.

    Attributes:
        text: what may be shown.
        logprobs: of the tokens since the piece before, where they were asked for.
    """

    text: str
    logprobs: list[Any]


Event = Piece | Timings | ApiError  # a Timings ends an answer, an ApiError likewise


@dataclass(eq=False)
class Job:
    """One request on its way through the queue and the model.

    Attributes:
        client: whose it is; clients take turns.
        ask: begins the answer.
        tell: hands an event to whoever waits for it; called by any thread.
        stopped: nobody wants the answer any more.
        stream: of the answer once it has begun.
    """

    client: str
    ask: Callable[[Model], Stream]
    tell: Callable[[Event], None]
    stopped: bool = False
    stream: Stream | None = field(default=None, repr=False)

    def stop(self, why: ApiError | None = None) -> None:
        """End it at its next token, or before it has begun; `why` is told at once."""
        self.stopped = True
        if self.stream is not None:
            self.stream.cancel()
        if why is not None:
            self.tell(why)


class FairQueue:
    """Jobs in the order in which clients take turns; each client's own in the order of their arrival.

    Args:
        most: jobs that may wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # the first client is the next one
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        with self._changed:
            return self._count()

    def put(self, job: Job) -> Job | None:
        """Let a job wait; where the queue is full, returns the one that has to go, which may be itself.

        That is the newest job of the client that has the most, if it has at least two more than this one's.
        """
        with self._changed:
            if self._closed:
                return job
            gone = None
            if self._count() >= self._most:
                greedy = max(self._waiting, key=lambda client: len(self._waiting[client]), default=job.client)
                own = len(self._waiting.get(job.client, ()))
                if not self._waiting or len(self._waiting[greedy]) < own + 2:
                    return job
                gone = self._waiting[greedy].pop()
            self._waiting.setdefault(job.client, deque()).append(job)
            self._changed.notify()
            return gone

    def take(self) -> Job | None:
        """The next job, waited for; None once the queue is closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            client, jobs = self._waiting.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._waiting[client] = jobs  # behind all others
            return job

    def remove(self, job: Job) -> bool:
        """Whether a job waited still; it does no more."""
        with self._changed:
            jobs = self._waiting.get(job.client, deque())
            if job not in jobs:
                return False
            jobs.remove(job)
            if not jobs:
                del self._waiting[job.client]
            return True

    def close(self) -> list[Job]:
        """Take nothing more; returns what waited."""
        with self._changed:
            left = [job for jobs in self._waiting.values() for job in jobs]
            self._waiting.clear()
            self._closed = True
            self._changed.notify_all()
            return left

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))
