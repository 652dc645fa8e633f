"""One connection: how long a client may take to say what it wants, and to take what it gets.

uvicorn has a clock for a connection that waits between two requests only.
"""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ApiError

MAX_HEADER_BYTES = 32 << 10
MAX_CONNECTIONS = 256
HEADER_TIMEOUT_S = 15.0
WRITE_TIMEOUT_S = 30.0  # without a byte taken, while there is more than the buffers hold


class TimedConnection(H11Protocol):
    """uvicorn's, with both clocks and errors in our shape."""

    header_timeout_s = HEADER_TIMEOUT_S
    write_timeout_s = WRITE_TIMEOUT_S
    max_connections = MAX_CONNECTIONS
    _header_clock: asyncio.TimerHandle | None = None
    _write_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(ApiError(503, "too many connections.", headers={"Retry-After": "1"}))
            return
        self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        for clock in (self._header_clock, self._write_clock):
            if clock is not None:
                clock.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        super().data_received(data)
        self._watch_header()

    def on_response_complete(self) -> None:
        """A response is done; the next request may begin."""
        super().on_response_complete()
        self._watch_header()

    def pause_writing(self) -> None:
        """The buffers are full."""
        super().pause_writing()
        self._write_clock = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """There is room again."""
        if self._write_clock is not None:
            self._write_clock.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP."""
        self._refuse(ApiError(400, "this is no request of HTTP/1.1, or its headers are too long."))

    def _watch_header(self) -> None:
        """The clock runs while no request is being answered."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering or self.transport.is_closing():
            if self._header_clock is not None:
                self._header_clock.cancel()
                self._header_clock = None
        elif self._header_clock is None:
            self._header_clock = self.loop.call_later(self.header_timeout_s, self._is_late)

    def _is_late(self) -> None:
        """No whole request came in time; one that never said a word is told nothing."""
        if self.conn.trailing_data[0]:
            self._refuse(ApiError(408, f"no whole request within {self.header_timeout_s:g} s."))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Say it if nothing was said yet, and hang up."""
        if not self.transport.is_closing() and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body).encode()
            headers: list[Any] = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
                *error.headers.items(),
            ]
            for event in (
                h11.Response(status_code=error.status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
