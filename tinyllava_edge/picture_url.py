"""Pictures fetched from https URLs of the public network, and from nowhere else."""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote, urljoin, urlsplit

from tinyllava_edge.errors import ImageError

MAX_URL = 8192  # characters of an https URL
MAX_REDIRECTS = 5
CONNECT_S = 10  # to each address
FETCH_S = (
    30  # for all of it, redirects too; the look-up of the name, which has the system's own limit, beside
)
_BLOCK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_KEPT = "%/?&=:;+,!~*'()@$-._[]"  # of a path and a query, which may be quoted already
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch_https(url: str, max_bytes: int, hosts: Collection[str] | None = None) -> bytes:
    """Fetch a picture: https only, also behind a redirect, and only from addresses of the public network.

    The name is looked up once, and the address that was checked is the one that is connected to: a name that
    is private a moment later does not count. No proxy, cookie or password is used. Where `hosts` are named,
    in lower case, a URL of another one is not fetched, nor is a redirect followed to it.

    Raises:
        ImageError: it is another address or scheme, does not answer in time, or is over `max_bytes`.
    """
    ends_at = time.monotonic() + FETCH_S
    for _ in range(MAX_REDIRECTS + 1):
        shown = url.split("?")[0][:200]
        try:
            if hosts is not None and urlsplit(url).hostname not in hosts:
                raise ImageError("its host is not one that may be fetched from.")
            found = _get(url, max_bytes, ends_at)
        except ImageError as error:
            raise ImageError(f"{shown}: {error}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = f"took more than {FETCH_S} s" if time.monotonic() >= ends_at else str(error)
            raise ImageError(f"{shown}: not fetched: {late or type(error).__name__}.") from None
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise ImageError(f"{shown}: more than {MAX_REDIRECTS} redirects.")


def _get(url: str, max_bytes: int, ends_at: float) -> bytes | str:
    """What is there, or where it is instead."""
    parts = urlsplit(url)
    if parts.scheme.lower() != "https" or not parts.hostname or len(url) > MAX_URL:
        raise ImageError(f"expected an https URL of at most {MAX_URL} characters.")
    if parts.username is not None or parts.password is not None:
        raise ImageError("a URL with a user's name in it is not fetched.")
    host = parts.hostname.encode("idna").decode() if not parts.hostname.isascii() else parts.hostname
    target = quote(parts.path or "/", safe=_KEPT) + (
        f"?{quote(parts.query, safe=_KEPT)}" if parts.query else ""
    )
    with _connected(host, parts.port or 443, ends_at) as connection:
        connection.request("GET", target, headers={"User-Agent": "tinyllava-edge", "Accept": "image/*"})
        with connection.getresponse() as answer:
            if answer.status in _REDIRECTS and (place := answer.getheader("Location")):
                return place
            if answer.status != 200:
                raise ImageError(f"the server answers {answer.status} {answer.reason:.80}.")
            return _content(answer, max_bytes, ends_at)


def _content(answer: http.client.HTTPResponse, max_bytes: int, ends_at: float) -> bytes:
    too_large = ImageError(f"expected at most {max_bytes:,} bytes.")
    if (answer.length or 0) > max_bytes:
        raise too_large
    content = bytearray()
    while block := answer.read(_BLOCK):
        content += block
        if len(content) > max_bytes:
            raise too_large
    if time.monotonic() >= ends_at:  # cut by the clock, which looks as if it had ended by itself
        raise TimeoutError
    if answer.length:
        raise ImageError("the connection ended before the picture did.")
    return bytes(content)


@contextmanager
def _connected(host: str, port: int, ends_at: float) -> Iterator[http.client.HTTPSConnection]:
    """A connection to one of the host's checked addresses, cut when the time is over."""
    opened = _open_socket(host, port, ends_at)
    try:
        peer = opened.getpeername()[0]
        if not _is_public(peer):
            raise ImageError(f"{host} is {peer}, which is not an address of the public network.")
        context = _context()
        secure = context.wrap_socket(opened, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        opened.close()
        raise

    def cut() -> None:
        with suppress(OSError):
            socket.socket.shutdown(secure, socket.SHUT_RDWR)

    clock = threading.Timer(max(0.0, ends_at - time.monotonic()), cut)
    clock.daemon = True
    clock.start()
    connection = http.client.HTTPSConnection(host, port, context=context)
    connection.sock = secure
    try:
        secure.do_handshake()
        yield connection
    finally:
        clock.cancel()
        connection.close()


def _open_socket(host: str, port: int, ends_at: float) -> socket.socket:
    found = [place[4][0] for place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    addresses = [str(address) for address in dict.fromkeys(found)]
    for address in addresses:
        if not _is_public(address):
            raise ImageError(f"{host} is {address}, which is not an address of the public network.")
    fault: OSError = OSError("its name has no address")
    for address in addresses:
        try:
            left = ends_at - time.monotonic()
            return socket.create_connection((address, port), timeout=max(0.01, min(CONNECT_S, left)))
        except OSError as error:
            fault = error
    raise fault


def _is_public(address: str) -> bool:
    """Whether an address is one that anybody may reach; what IPv6 wraps around IPv4 counts as that."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return _is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        wrapped = ip.ipv4_mapped or ip.sixtofour
        if wrapped is not None:
            return _is_public(str(wrapped))
        if ip.teredo is not None or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast


def _context() -> ssl.SSLContext:
    return ssl.create_default_context()
