"""Who may ask: Host, Origin and API key of every request, before any route sees it.

A page of the web that the owner has open can send requests to this machine. By a name of its own that it
lets resolve to 127.0.0.1 (DNS rebinding) it could read the answers: such a Host is refused. By the right
address it could at least send: its Origin is refused.
"""

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from hashlib import sha256
from typing import Any

from .errors import ApiError
from .metrics import Metrics

OPEN_ROUTES = ("/health",)  # for what watches the server; tells nothing
KNOWN_ROUTES = ("/", "/health", "/metrics", "/v1/models", "/v1/chat/completions")
_LOCAL_NAMES = ("localhost", "localhost.localdomain")
_CORS = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type",
    "access-control-max-age": "600",
}
# What browsers are told of an answer that does not say otherwise: it is no page, and no other page's.
_SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}

App = Callable[[Any, Any, Any], Awaitable[None]]


class Rules:
    """What the owner allows.

    Args:
        is_local: the server listens on a loopback address only.
        host_names: names in a Host header besides those of this machine and plain addresses.
        origins: pages of other servers that may ask, as `https://example.org`.
        keys: API keys; any of them opens, and without any no key is asked for.
    """

    def __init__(
        self,
        *,
        is_local: bool = True,
        host_names: Collection[str] = (),
        origins: Collection[str] = (),
        keys: Sequence[str] = (),
    ) -> None:
        self._is_local = is_local
        self._host_names = {name.lower() for name in (*_LOCAL_NAMES, *host_names)}
        self._origins = {origin.lower().rstrip("/") for origin in origins}
        self._keys = [sha256(key.encode()).digest() for key in keys]

    def check(self, scope: Any, open_routes: Collection[str] = OPEN_ROUTES) -> str | None:
        """The Origin to allow in the answer, None where there is none.

        Args:
            scope: of ASGI.
            open_routes: those without a key.

        Raises:
            ApiError: 421 for the Host, 403 for the Origin, 401 for the key.
        """
        headers = read_headers(scope)
        host = headers.get("host", "")
        if not self._is_our_name(_without_port(host)):
            raise ApiError(421, "this server is not known by that Host name.", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None:
            is_own = origin.lower() == f"{scope['scheme']}://{host.lower()}"
            if not is_own and origin.lower() not in self._origins:
                raise ApiError(403, "pages of that Origin may not ask this server.", code="wrong_origin")
        if scope["path"] not in open_routes and not _is_preflight(scope, headers):
            self._check_key(headers.get("authorization", ""))
        return origin

    def _is_our_name(self, name: str) -> bool:
        if name.lower() in self._host_names:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        # An address is no name, which somebody else could let point here.
        return address.is_loopback or not self._is_local

    def _check_key(self, authorization: str) -> None:
        if not self._keys:
            return
        scheme, _, key = authorization.partition(" ")
        given = sha256(key.strip().encode(errors="replace")).digest()
        is_known = False
        for known in self._keys:  # all of them, so that the time says nothing
            is_known |= hmac.compare_digest(known, given)
        if scheme.lower() != "bearer" or not is_known:
            how = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, "the API key is missing or wrong.", code="invalid_api_key", headers=how)


class Gate:
    """The application behind its rules; counts every request.

    Args:
        app: what answers.
        rules: who may ask.
        metrics: counts.
        open_routes: those without a key besides `OPEN_ROUTES`.
    """

    def __init__(self, app: App, rules: Rules, metrics: Metrics, open_routes: Collection[str] = ()) -> None:
        self._app, self._rules, self._metrics = app, rules, metrics
        self._open_routes = frozenset((*OPEN_ROUTES, *open_routes))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, origin = 499, None

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = {**_SAFE_HEADERS, "vary": "origin"}
                if origin is not None:
                    added["access-control-allow-origin"] = origin
                own = list(message.get("headers", ()))
                said = {name for name, _ in own}
                encoded = [(name.encode(), value.encode("latin-1")) for name, value in added.items()]
                message = {**message, "headers": own + [pair for pair in encoded if pair[0] not in said]}
            await send(message)

        try:
            origin = self._rules.check(scope, self._open_routes)
            if _is_preflight(scope, read_headers(scope)):
                await respond(counted, 204, b"", _CORS)
            else:
                await self._app(scope, receive, counted)
        except ApiError as error:
            await respond(counted, error.status, json.dumps(error.body).encode(), error.headers)
        finally:
            route = scope["path"] if scope["path"] in KNOWN_ROUTES else "other"
            self._metrics.requested(route, status)


async def respond(send: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    """A whole response."""
    all_headers = {"content-length": str(len(body)), **headers}
    if body:
        all_headers["content-type"] = "application/json"
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in all_headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def read_headers(scope: Any) -> dict[str, str]:
    """Headers by name in lower case; the last one of a name counts."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _is_preflight(scope: Any, headers: dict[str, str]) -> bool:
    """Whether a browser asks if a page may ask."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _without_port(host: str) -> str:
    """`[::1]:8000` -> `[::1]`."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
