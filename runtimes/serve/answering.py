"""One request on its way through queue and model, seen from the client's side."""

import asyncio
import time
from contextlib import suppress
from typing import Any

from .ask import read_settings
from .errors import ApiError
from .jobs import Event, Job
from .messages import Asked
from .request import ChatRequest
from .worker import Served


class Answering:
    """One request on its way, seen from the side of the client; used by the server's thread only."""

    def __init__(
        self, served: Served, request: ChatRequest, asked: Asked, client: str, deadline_s: float
    ) -> None:
        self._served = served
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._settings = read_settings(request)
        if asked.system is not None:
            self._settings["system"] = asked.system
        self._asked = asked
        self._began = time.monotonic()
        self.queue_ms = 0.0
        self._job = Job(client=client, ask=self._ask, tell=self._tell)
        late = ApiError(503, f"not answered within {deadline_s:g} s.", code="deadline_exceeded")
        self._clock = self._loop.call_later(deadline_s, self._served.withdraw, self._job, late)
        self._watch: asyncio.Task[None] | None = None

    def begin(self, receive: Any) -> None:
        """Take a place in the queue; a client that goes away gives it up, or ends the answer."""
        self._watch = asyncio.create_task(self._until_gone(receive))
        self._served.submit(self._job)

    async def next(self, within_s: float | None = None) -> Event | None:
        """The next event, None where none came in time.

        Raises:
            ApiError: the request has failed.
        """
        try:
            event = await asyncio.wait_for(self._events.get(), within_s)
        except asyncio.TimeoutError:
            return None
        if isinstance(event, ApiError):
            raise event
        return event

    def end(self) -> None:
        """Nobody waits any more; calling it twice is harmless."""
        self._clock.cancel()
        if self._watch is not None:
            self._watch.cancel()
        self._served.withdraw(self._job)

    def mark_first(self) -> None:
        """The first text is there."""
        self._served.metrics.first_token(self._served.name, time.monotonic() - self._began)

    def _ask(self, model: Any) -> Any:
        """In the model's thread, when its turn has come."""
        self.queue_ms = (time.monotonic() - self._began) * 1000
        return model.answer(self._asked.turns, self._asked.pictures, **self._settings)

    def _tell(self, event: Event) -> None:
        with suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def _until_gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._served.withdraw(self._job, ApiError(499, "the client went away.", code="disconnected"))
