"""Keys, names and origins; slow clients; too many of them; metrics; a restart. nano, CPU."""

import hashlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.runtimes.serve.serving import EMOJI, LONG, QUESTION, Running, asked, data_url, running
from tinyllava_edge.runtimes.serve.app import Server
from tinyllava_edge.runtimes.serve.connections import TimedConnection
from tinyllava_edge.runtimes.serve.gate import Rules
from tinyllava_edge.runtimes.serve.images import KnownPictures, open_file_store

CHAT = "/v1/chat/completions"
KEY, OTHER = "k" * 32, "an-other-key-of-the-owner"
PAGE = "https://page.example"
ROUTES = ("/metrics", "/v1/models", "/v1/models/nano", "/v1/models/nano/proof", "/nothing", "/page/nothing")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(rules=Rules(keys=[KEY, OTHER], origins=[PAGE], host_names=["my.example"])) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as found:
        yield found


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        KEY,
        "Bearer",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Basic {KEY}",
        "Bearer \xff",
    ],
)
def test_without_the_key_every_route_but_health_is_401(
    client: httpx.Client, authorization: str | None
) -> None:
    headers = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
    assert client.get("/health", headers=headers).status_code == 200
    for response in (
        *(client.get(route, headers=headers) for route in ROUTES),
        client.post(CHAT, json=asked(), headers=headers),
    ):
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_any_of_the_keys_opens(client: httpx.Client, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    assert client.post(CHAT, json=asked(), headers=headers).status_code == 200
    assert [client.get(route, headers=headers).status_code for route in ROUTES] == [
        200,
        200,
        200,
        200,
        404,
        404,
    ]


def test_a_page_that_the_owner_allows_may_ask(client: httpx.Client) -> None:
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    preflight = client.options(CHAT, headers=asks)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    answer = client.post(CHAT, json=asked(), headers={"Origin": PAGE, "Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-credentials" not in answer.headers


def test_its_own_page_and_its_own_names_may_ask(client: httpx.Client, server: Running) -> None:
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "127.1.2.3", "my.example"):
        assert client.get("/health", headers={"Host": host}).status_code == 200
    assert client.get("/health", headers={"Origin": server.url}).status_code == 200


def test_an_address_is_a_name_where_other_machines_may_ask() -> None:
    rules = Rules(is_local=False, keys=[KEY])
    for host, is_known in (("192.168.1.7:8000", True), ("[fe80::1]", True), ("evil.example", False)):
        scope = {"headers": [(b"host", host.encode())], "path": "/health", "method": "GET", "scheme": "http"}
        if is_known:
            assert rules.check(scope) is None
        else:
            with pytest.raises(Exception, match="not known by that Host"):
                rules.check(scope)


class Hasty(TimedConnection):
    """A connection whose clocks are short, and of which there may be few."""

    header_timeout_s = 1.0
    write_timeout_s = 0.3
    max_connections = 6


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


def test_slow_clients_are_hung_up_on() -> None:
    """Headers that drip, a body that does, a client that says nothing, and one that does not read."""
    with running(connection=Hasty, body_timeout_s=1.0) as server:
        silent, slow_head, slow_body = connect(server), connect(server), connect(server)
        slow_head.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        slow_body.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Content-Length: 100\r\nConnection: close\r\n\r\n{".encode()
        )
        ends = time.monotonic() + 0.25
        while time.monotonic() < ends:  # a byte now and then does not buy time
            time.sleep(0.1)
            slow_head.sendall(b"X")
            slow_body.sendall(b" ")
        assert read_all(silent) == b""
        assert read_all(slow_head).startswith(b"HTTP/1.1 408 ")
        assert read_all(slow_body).startswith(b"HTTP/1.1 408 ")
        for one in (silent, slow_head, slow_body):
            one.close()
        server.wait_until(lambda: not server.program.server_state.connections)
        with server.client() as client:
            assert client.post(CHAT, json=asked()).status_code == 200


def test_no_piece_waits_for_an_ack() -> None:
    with running() as server, connect(server):
        server.wait_until(lambda: server.program.server_state.connections)
        [connection] = server.program.server_state.connections
        opened = connection.transport.get_extra_info("socket")
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_more_connections_than_there_may_be_are_503() -> None:
    with running(connection=Hasty) as server:
        kept = [connect(server) for _ in range(6)]
        server.wait_until(lambda: len(server.program.server_state.connections) == 6)
        with connect(server) as refused:
            assert read_all(refused).startswith(b"HTTP/1.1 503 ")
        for one in kept:
            one.close()


def test_a_client_that_does_not_read_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyllava_edge.runtimes.serve.app.KEEP_ALIVE", b":" * (8 << 20) + b"\n\n")
    monkeypatch.setattr("tinyllava_edge.runtimes.serve.app.KEEP_ALIVE_S", 0.01)
    with running(connection=Hasty, slow_s=0.05) as server, connect(server) as deaf:
        body = httpx.Request("POST", server.url, json=asked(stream=True, grammar=LONG)).content
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        deaf.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.wait_until(lambda: server.served.num_answering)
        server.wait_until(lambda: not server.served.num_answering)
        server.wait_until(lambda: not server.program.server_state.connections)


def test_the_metrics_count_what_was_done() -> None:
    with running() as server, server.client() as client:
        for _ in range(3):
            client.post(CHAT, json=asked(QUESTION, data_url()))
        client.post(CHAT, json={})
        client.get("/nothing")
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(re.findall(r"^tinyllava_edge_(\S+) (\S+)$", response.text, re.MULTILINE))
    assert values[f'requests_total{{route="{CHAT}",status="200"}}'] == "3"
    assert values[f'requests_total{{route="{CHAT}",status="400"}}'] == "1"
    assert values['requests_total{route="other",status="404"}'] == "1"
    assert values['queue_depth{model="nano"}'] == values['running{model="nano"}'] == "0"
    prompt, cached = (
        float(values[f'tokens_total{{model="nano",kind="{kind}"}}']) for kind in ("prompt", "cached")
    )
    assert cached == 2 * (prompt / 3 - 1)
    for name in ("time_to_first_token_seconds", "time_per_output_token_seconds"):
        assert values[f'{name}_count{{model="nano"}}'] == "3"
        assert values[f'{name}_bucket{{model="nano",le="+Inf"}}'] == "3"
        assert float(values[f'{name}_sum{{model="nano"}}']) > 0


def test_a_picture_outlives_the_process_where_there_is_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image_id = hashlib.sha256(EMOJI.read_bytes()).hexdigest()
    by_id = asked(QUESTION)
    by_id["messages"][0]["content"].append({"type": "image_id", "image_id": image_id})
    for number, body in enumerate((asked(QUESTION, data_url()), by_id)):
        with (
            running(store_mb=50, pictures=KnownPictures(open_file_store(50))) as server,
            server.client() as client,
        ):
            response = client.post(CHAT, json=body).json()
        assert response["choices"][0]["message"]["content"] == "blueberries"
        cached = response["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert (cached > 35) is bool(number), "the context up to the picture was put back"


def test_known_pictures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyllava_edge.runtimes.serve.images.MAX_KNOWN_BYTES", EMOJI.stat().st_size + 10)
    known = KnownPictures()
    image_id, _ = known.from_url(data_url(), "x")
    assert known.from_id(image_id, "x")[0] == image_id
    cat = EMOJI.with_name("cat.jpg")
    monkeypatch.setattr("tinyllava_edge.runtimes.serve.images.MAX_KNOWN_BYTES", cat.stat().st_size + 10)
    known.from_url(data_url(cat, "jpeg"), "x")
    with pytest.raises(Exception, match="Send it again"):
        known.from_id(image_id, "x")


def test_the_application_has_no_pages_that_were_not_asked_for() -> None:
    server = Server({}, None, Rules(), with_page=False)  # type: ignore[arg-type]
    routes = server.app._app.routes  # type: ignore[attr-defined]
    assert {route.path for route in routes} == {
        *("/health", "/metrics", "/v1/models", "/v1/models/{name}", "/v1/models/{name}/proof", CHAT),
    }
