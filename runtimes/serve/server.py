"""The program around the application: its socket, its models, and how it ends."""

import asyncio
import ipaddress
import socket
from collections.abc import Collection, Sequence
from typing import Any

import uvicorn

from tinyllava_edge.errors import UsageError

from .app import Server
from .connections import HEADER_TIMEOUT_S, MAX_HEADER_BYTES, TimedConnection
from .worker import Served

GRACE_S = 10.0  # for answers that run when the server is to end
_LAST_WORDS_S = 2.0  # for what they are told then


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UsageError: the address is taken, not of this machine, or unknown.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"{host}:{port}: cannot listen there: {reason}. Stop what does, or give --port or --host."
        raise UsageError(message) from None


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
