"""Fetching a picture: a real server with TLS on this machine, which is allowed as an address here alone."""

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge import picture_url
from tinyllava_edge.errors import ImageError
from tinyllava_edge.image import open_picture
from tinyllava_edge.picture_url import fetch_https

x509 = pytest.importorskip("cryptography.x509")
CONTENT = (Path(__file__).parents[1] / "fixtures" / "images" / "cat_231x153.png").read_bytes()


def certificate(folder: Path) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pictures.test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("pictures.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    own, private = folder / "cert.pem", folder / "key.pem"
    own.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return own, private


class Handler(BaseHTTPRequestHandler):
    places: dict[str, str]
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.place, _, _ = self.path.partition("?")
        if self.place in self.places:
            self.answer(302, Location=self.places[self.place])
        elif self.place == "/gone":
            self.answer(404)
        elif self.place == "/short":
            self.answer(200, CONTENT[:100], length=len(CONTENT))
        elif self.place == "/no-length":
            self.answer(200, CONTENT, length=None)
        elif self.place in ("/drips", "/drips-without-length"):
            self.answer(200, length=10**6 if self.place == "/drips" else None)
            for _ in range(200):
                self.wfile.write(b"x")
                time.sleep(0.02)
        else:
            self.answer(200, CONTENT, length=len(CONTENT))

    def answer(self, status: int, content: bytes = b"", length: int | None = 0, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)


class Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ssl.SSLContext]]:
    own, private = certificate(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, private)
    with Quiet(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        base = f"https://pictures.test:{server.server_address[1]}"
        loop = ["/round"]
        Handler.places = {
            "/moved": f"{base}/cat.png",
            "/relative": "/cat.png",
            "/plain": "http://pictures.test/cat.png",
            "/inside": "https://10.0.0.7/cat.png",
            "/file": "file:///etc/passwd",
            **dict.fromkeys(loop, "/round"),
        }
        Handler.asked = []
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield base, ssl.create_default_context(cafile=str(own))
        server.shutdown()


@pytest.fixture
def base(server: tuple[str, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> str:
    """Its URL; its name is looked up here, its certificate trusted, and its address counts as public."""
    look_up, is_public = socket.getaddrinfo, picture_url._is_public

    def found(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        return look_up("127.0.0.1" if host == "pictures.test" else host, port, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setattr(picture_url, "_is_public", lambda ip: ip == "127.0.0.1" or is_public(ip))
    monkeypatch.setattr(picture_url, "_context", lambda: server[1])
    return server[0]


@pytest.mark.parametrize(
    "path", ["/cat.png", "/no-length", "/moved", "/relative", "/katze groß.png?q=ä&r=%20"]
)
def test_a_picture_is_fetched(base: str, path: str) -> None:
    assert fetch_https(f"{base}{path}", 10**6) == CONTENT
    assert open_picture(f"{base}{path}", allow_url=True).size == (231, 153)
    assert all(path.isascii() and " " not in path for path in Handler.asked)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/gone", "the server answers 404 Not Found"),
        ("/short", "connection ended before the picture did"),
        ("/plain", "http://pictures.test/cat.png: expected an https URL"),
        ("/inside", "10.0.0.7 is 10.0.0.7, which is not an address of the public network"),
        ("/file", "file:///etc/passwd: expected an https URL"),
        ("/round", "more than 5 redirects"),
        ("/" + "x" * 9000, "at most 8192 characters"),
    ],
)
def test_what_is_not_fetched_is_one_line(base: str, path: str, message: str) -> None:
    with pytest.raises(ImageError) as error:
        fetch_https(f"{base}{path}?key=secret", 10**6)
    assert message in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("path", ["/cat.png", "/no-length"])
def test_no_more_is_read_than_the_limit(base: str, path: str) -> None:
    assert fetch_https(f"{base}{path}", len(CONTENT)) == CONTENT
    with pytest.raises(ImageError, match=f"expected at most {len(CONTENT) - 1:,} bytes"):
        fetch_https(f"{base}{path}", len(CONTENT) - 1)


@pytest.mark.parametrize("path", ["/drips", "/drips-without-length"])
def test_a_server_that_drips_is_cut_in_time(base: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_url, "FETCH_S", 0.4)
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"took more than 0.4 s"):
        fetch_https(f"{base}{path}", 10**7)
    assert time.monotonic() - started < 2


def test_a_server_that_never_says_hello_is_cut_in_time(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_url, "FETCH_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ImageError, match=r"took more than"):
        fetch_https(f"https://pictures.test:{silent.getsockname()[1]}/", 10**6)


def test_a_certificate_of_another_name_or_nobody_is_refused(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch_https(base.replace("pictures.test", "127.0.0.1"), 10**6)
    monkeypatch.setattr(picture_url, "_context", ssl.create_default_context)
    with pytest.raises(ImageError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch_https(f"{base}/cat.png", 10**6)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "::1", "::", "fe80::1", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"),
        *("2002:a00:1::", "2001:0:a00:1::1", "ff02::1"),
    ],
)
def test_a_name_that_leads_inside_is_not_connected_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not picture_url._is_public(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 443))
    hidden = (family, socket.SOCK_STREAM, 6, "", (address, 443))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [public, hidden])
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(ImageError, match="which is not an address of the public network"):
        fetch_https("https://pictures.test/cat.png", 10**6)


def test_the_address_that_was_connected_to_counts(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system connects elsewhere than it was told."""
    answers = iter([True, False])
    monkeypatch.setattr(picture_url, "_is_public", lambda ip: next(answers))
    with pytest.raises(ImageError, match=r"pictures.test is 127.0.0.1, which is not"):
        fetch_https(f"{base}/cat.png", 10**6)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_addresses_of_the_public_network_are_known(address: str) -> None:
    assert ipaddress.ip_address(address)
    assert picture_url._is_public(address)


def test_a_users_name_is_not_sent_anywhere() -> None:
    with pytest.raises(ImageError, match="with a user's name in it"):
        fetch_https("https://me:word@example.com/a.png", 10**6)
