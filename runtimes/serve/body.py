"""A request's body: read within bounds of bytes, time and memory, and JSON that nothing can be hidden in."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

from .errors import ApiError

MAX_BODY_BYTES = 16 << 20
MAX_HELD_BYTES = 256 << 20  # bodies of all requests that are being read or understood
MAX_DEPTH = 32
MAX_VALUES = 100_000  # commas and brackets outside of strings: each value costs 8 to 64 bytes of memory
BODY_TIMEOUT_S = 15.0
# A string, or what begins as one and does not end; linear, as every quote is taken by the first match.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")

Receive = Callable[[], Awaitable[Any]]


class BodyReader:
    """Reads bodies, and knows how many bytes of them are held."""

    def __init__(self, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self.held = 0

    async def read(self, receive: Receive, headers: dict[str, str]) -> bytes:
        """The whole body; its bytes count as held until `release`.

        Raises:
            ApiError: 413, 408, 503, or 499 where the client has gone.
        """
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
            raise _too_large()
        parts: list[bytes] = []
        try:
            await asyncio.wait_for(self._collect(receive, parts), self._timeout_s)
        except BaseException as error:
            self.release(parts)
            if isinstance(error, asyncio.TimeoutError):
                raise ApiError(408, f"the body did not arrive within {self._timeout_s:g} s.") from None
            raise
        return b"".join(parts)

    def release(self, parts: "list[bytes] | bytes") -> None:
        """Bytes that are held no more."""
        self.held -= len(parts) if isinstance(parts, bytes) else sum(map(len, parts))

    async def _collect(self, receive: Receive, parts: list[bytes]) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(499, "the client went away.", code="disconnected")
            part = message.get("body", b"")
            size, more = size + len(part), message.get("more_body", False)
            if size > MAX_BODY_BYTES:
                raise _too_large()
            if self.held + len(part) > MAX_HELD_BYTES:
                raise ApiError(503, "too much is being sent at the same time.", headers={"Retry-After": "1"})
            self.held += len(part)
            parts.append(part)


def parse_json(body: bytes) -> Any:
    """The value of a body.

    Raises:
        ApiError: not JSON, not UTF-8, too deep, too many values, a name twice in one object, or no number.
    """
    outside = _STRING.sub(b"", body)
    depth = deepest = 0
    if sum(map(outside.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ApiError(400, f"the body has more than {MAX_VALUES:,} values.")
    for bracket in _BRACKETS.findall(outside):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise ApiError(400, f"the body is nested {deepest} levels deep; {MAX_DEPTH} at most.")
    try:
        text = body.decode("utf-8")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 ({error.reason} at byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error.msg} at character {error.pos}.") from None
    except ValueError:  # an integer of thousands of digits
        raise ApiError(400, "the body has a number that is too long.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ApiError(400, f"the name {twice[:60]!r} stands twice in one object.")
    return found


def _no_number(text: str) -> Any:
    raise ApiError(400, f"{text} is no number of JSON.")


def _too_large() -> ApiError:
    return ApiError(413, f"the body has more than {MAX_BODY_BYTES:,} bytes.", code="body_too_large")
