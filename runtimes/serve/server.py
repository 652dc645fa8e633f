"""The program around the application: its socket, its models, and how it ends."""

import asyncio
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn

from tinyllava_edge.errors import UsageError

from .app import Server
from .connections import HEADER_TIMEOUT_S, MAX_HEADER_BYTES, TimedConnection
from .worker import Served

GRACE_S = 10.0  # for answers that run when the server is to end
_BACKLOG = 128
_LAST_WORDS_S = 2.0  # for what they are told then


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UsageError: the address is taken, not of this machine, or unknown.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # With its protocol, by which asyncio sets TCP_NODELAY (socket.create_server leaves it out): else
        # the pieces of a stream wait 40 ms for the client's delayed ACK.
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    try:
        if os.name == "posix":  # elsewhere it would let a second server in
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise _cannot_listen(host, port, error) from None
    return listening


def _cannot_listen(host: str, port: int, error: OSError) -> UsageError:
    reason = error.strerror or str(error)
    return UsageError(
        f"{host}:{port}: cannot listen there: {reason}. Stop what does, or give --port or --host."
    )


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def url_of(listening: socket.socket) -> str:
    """Where a client finds a socket."""
    address, port = listening.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


class Program(uvicorn.Server):
    """uvicorn's server, which ends answers before it ends itself.

    Args:
        server: the application.
        served: its models.
        grace_s: how long answers that run may go on when it ends.
        connection: of each client.
    """

    def __init__(
        self,
        server: Server,
        served: Collection[Served],
        *,
        grace_s: float = GRACE_S,
        connection: type[TimedConnection] = TimedConnection,
    ) -> None:
        config = uvicorn.Config(
            server.app,
            http=connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(HEADER_TIMEOUT_S),
            timeout_graceful_shutdown=int(grace_s + _LAST_WORDS_S) + 1,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        super().__init__(config)
        self._served, self._grace_s = served, grace_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's, for the signals that end a command here; one that the caller ignores stays so."""
        wanted = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
        is_main = threading.current_thread() is threading.main_thread()
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in wanted
            if is_main and number is not None and signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        for captured in reversed(self._captured_signals):
            signal.raise_signal(captured)  # which gives the command its exit code

    async def shutdown(self, sockets: Sequence[Any] | None = None) -> None:
        """Refuse what waits, let answers end, and end them where they do not."""
        for served in self._served:
            served.stop_taking()
        clock = asyncio.get_running_loop().call_later(self._grace_s, self._end_running)
        try:
            await super().shutdown(list(sockets or ()))
        finally:
            clock.cancel()

    def _end_running(self) -> None:
        for served in self._served:
            served.end_running()
