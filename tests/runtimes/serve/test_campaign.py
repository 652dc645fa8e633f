"""Threats T6 to T9 by number: damaged pictures, URLs, texts with special tokens, requests drawn at random.

A slice runs always, all of it behind the marker `long`. nano, CPU.
"""

import base64
import io
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.runtimes.serve.serving import QUESTION, Running, asked, data_url, running
from tinyllava_edge import Model, open_bundle, picture_url
from tinyllava_edge.memory import anonymous_bytes
from tinyllava_edge.runtimes.serve.errors import ApiError
from tinyllava_edge.runtimes.serve.images import KnownPictures, fetch_from
from tinyllava_edge.runtimes.serve.messages import read_messages
from tinyllava_edge.runtimes.serve.request import ChatRequest, read_request

LEAKS = re.compile(r"\b0x[0-9a-f]{6,}|Traceback|site-packages|\.py\b")
STATUSES = {200, 400, 401, 403, 404, 405, 408, 411, 413, 415, 421, 422, 429, 503}
CHAT = "/v1/chat/completions"


def pictures() -> list[bytes]:
    """The same small drawing in every format that is taken."""
    image = Image.new("RGB", (40, 30), "red")
    image.paste("blue", (5, 5, 20, 20))
    found = []
    for name, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("BMP", {})):
        file = io.BytesIO()
        image.save(file, name, **options)
        found.append(file.getvalue())
    return found


def as_png(draw: random.Random) -> str:
    """The URL of a small picture that nobody has sent before."""
    file = io.BytesIO()
    Image.frombytes("RGB", (24, 24), draw.randbytes(24 * 24 * 3)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Some bytes other than they were, or missing, or twice."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 40))):
        at = draw.randrange(len(changed))
        kind = draw.randrange(4)
        if kind == 0:
            changed[at] = draw.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del changed[at : at + draw.randrange(1, 20)]
        else:
            changed[at:at] = changed[at : at + draw.randrange(1, 20)]
        changed = changed or bytearray(b"x")
    return bytes(changed)


def fault_of(work: Callable[[], object]) -> ApiError | None:
    try:
        work()
    except ApiError as error:
        return error
    return None


def check_pictures(count: int, seed: int) -> Counter[str]:
    """T6: each damaged picture is opened, or is one 400 that leaks nothing."""
    draw, known, good = random.Random(seed), KnownPictures(), pictures()
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        url = f"data:image/png;base64,{base64.b64encode(damaged(draw.choice(good), draw)).decode()}"
        fault = fault_of(lambda: known.from_url(url, "x"))  # noqa: B023
        outcomes["refused" if fault else "opened"] += 1
        assert fault is None or (fault.status == 400 and not LEAKS.search(fault.message)), fault
    return outcomes


def test_500_damaged_pictures_are_opened_or_refused() -> None:
    assert min(check_pictures(500, seed=1).values()) > 50


@pytest.mark.long
def test_20000_damaged_pictures_are_opened_or_refused() -> None:
    assert sum(check_pictures(20_000, seed=2).values()) == 20_000


URLS = (
    *("http://127.0.0.1/x.png", "https://127.0.0.1/x.png", "https://localhost/x", "https://localhost./x"),
    *("https://2130706433/x", "https://0x7f000001/x", "https://0177.0.0.1/x", "https://127.1/x"),
    *(
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://[::]/x",
        "https://0.0.0.0/x",
        "https://0/x",
    ),
    *("https://169.254.169.254/latest/meta-data", "https://10.0.0.1/x", "https://192.168.0.1/x"),
    *("https://172.16.0.1/x", "https://100.64.0.1/x", "https://[fe80::1]/x", "https://[fd00::1]/x"),
    *("https://example.org@127.0.0.1/x", "https://127.0.0.1#@example.org/x", "file:///etc/passwd"),
    *("ftp://example.org/x", "gopher://127.0.0.1/x", "HTTPS://LOCALHOST/x", "//localhost/x", "javascript:1"),
    *("https://example.org/x.png", "data:text/html;base64,eA==", "data:image/png,eA==", "data:", ""),
)


@pytest.mark.parametrize("url", URLS)
def test_without_the_owners_word_no_url_is_fetched(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """T7."""
    monkeypatch.setattr("socket.create_connection", lambda *_: pytest.fail("it connected"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("it looked a name up"))
    with pytest.raises(ApiError) as found:
        KnownPictures().from_url(url, "x")
    assert found.value.status == 400


@pytest.mark.parametrize("url", URLS)
def test_no_url_but_of_the_allowed_hosts_is_fetched(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("it connected"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("it looked a name up"))
    with pytest.raises(ApiError) as found:
        KnownPictures(fetch=fetch_from(["Pictures.Example"])).from_url(url, "x")
    assert found.value.status == 400


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fd00::1"]
)
def test_an_allowed_host_that_is_a_private_address_is_not_fetched(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("it connected"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 443))])
    with pytest.raises(ApiError, match="may not be fetched") as found:
        KnownPictures(fetch=fetch_from(["pictures.example"])).from_url("https://pictures.example/x", "x")
    assert address not in found.value.message


def test_a_redirect_to_another_host_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = []

    def redirected(url: str, *_: Any) -> str:
        asked_for.append(url)
        return "https://other.example/y"

    monkeypatch.setattr(picture_url, "_get", redirected)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("it looked a name up"))
    with pytest.raises(ApiError, match="may not be fetched"):
        KnownPictures(fetch=fetch_from(["pictures.example"])).from_url("https://pictures.example/x", "x")
    assert asked_for == ["https://pictures.example/x"]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with open_bundle("nano", threads=1) as opened:
        yield opened


def special_texts() -> list[str]:
    with open_bundle("nano", threads=1) as opened:
        return [token.content for token in opened.tokenizer._added.values()]


TYPED = st.lists(
    st.one_of(
        st.text(max_size=8), st.sampled_from(["</s>", "<s>", "<image>", "<|im_start|>", "USER:", "\0"])
    ),
    max_size=6,
).map("".join)


def check_text(model: Model, text: str) -> None:
    """T8: what a user types is never a special token, nor a picture."""
    body = {"model": "nano", "messages": [{"role": "user", "content": f"a{text}"}]}
    fault = fault_of(lambda: read_messages(read_request(body), KnownPictures(), 1024))
    if fault is not None or "<image>" in text:
        assert fault is not None
        assert (fault.status, "<image>" in text) == (400, True)
        return
    asked_ = read_messages(read_request(body), KnownPictures(), 1024)
    ids = model.tokenize(asked_.turns, honour_special=False, num_pictures=0)
    harmless = model.tokenize([("a", None)], honour_special=False, num_pictures=0)
    special = {id_ for id_, token in model.tokenizer._added.items() if token.special}
    count = sum(id_ in special or id_ < 0 for id_ in ids)
    assert count == sum(id_ in special for id_ in harmless), "the template's own, and no other"


@given(text=TYPED)
@example(text="".join(special_texts()))
@settings(max_examples=100)
def test_what_a_user_types_is_no_special_token(model: Model, text: str) -> None:
    check_text(model, text)


@pytest.mark.long
@given(text=TYPED)
@settings(max_examples=2000)
def test_what_a_user_types_is_no_special_token_2000_times(model: Model, text: str) -> None:
    check_text(model, text)


VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        3.5,
        -1e308,
        10**9,
        2**63,
        10**30,
        "",
        "x",
        "nano",
        [],
        [[]],
        {},
        {"a": 1},
    ),
    *(["x"], "\0", "\u202e", [None], {"type": "json_object"}, {"include_usage": True}, "x" * 5000),
)
PATHS = (
    *("/health", "/metrics", "/v1/models", "/v1/models/nano", "/v1/models/nano/proof", CHAT, "/v1", "/docs"),
    *("/", "/page/app.js", "/page/..%2f", "/v1/x", "/%00"),
)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE")


def drawn_body(draw: random.Random) -> bytes:
    """A good body with something else in one to three of its places, at times damaged as text."""
    body = asked(QUESTION, data_url(), max_tokens=4) if draw.random() < 0.5 else asked(max_tokens=4)
    for _ in range(draw.randrange(1, 4)):
        place: Any = body
        for _ in range(draw.randrange(4)):
            inner = [
                x
                for x in (place.values() if isinstance(place, dict) else place)
                if isinstance(x, dict | list)
            ]
            place = draw.choice(inner) if inner else place
        if isinstance(place, dict):
            name = draw.choice((*place, *ChatRequest.model_fields, "n", "tools", "max_token"))
            place[name] = deepcopy(draw.choice(VALUES))
        elif place:
            place[draw.randrange(len(place))] = deepcopy(draw.choice(VALUES))
    data = json.dumps(body).encode()
    return damaged(data, draw) if draw.random() < 0.3 else data


def check_requests(server: Running, count: int, seed: int) -> Counter[int]:
    """T9: the invariants of HTTP after every request; every fiftieth is followed by one that is known."""
    draw, statuses = random.Random(seed), Counter[int]()
    with server.client() as client:
        golden = client.post(CHAT, json=asked(QUESTION, data_url())).json()["choices"]
        for number in range(count):
            method, path = (
                ("POST", CHAT) if draw.random() < 0.7 else (draw.choice(METHODS), draw.choice(PATHS))
            )
            headers = {"Content-Type": draw.choice(("application/json",) * 9 + ("text/plain",))}
            response = client.request(method, path, content=drawn_body(draw), headers=headers)
            statuses[response.status_code] += 1
            assert response.status_code in STATUSES, (seed, number, response.text)
            assert not LEAKS.search(response.text), (seed, number, response.text)
            if response.status_code != 200 and method != "HEAD":
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            if number % 50 == 0:
                assert client.post(CHAT, json=asked(QUESTION, data_url())).json()["choices"] == golden
    return statuses


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


def test_100_requests_drawn_at_random_have_a_status_of_ours(server: Running) -> None:
    statuses = check_requests(server, 100, seed=1)
    assert statuses[200] > 1
    assert statuses[400] > 10


@pytest.mark.long
def test_20000_requests_drawn_at_random_leak_nothing(server: Running) -> None:
    check_requests(server, 1000, seed=2)  # caches are full then
    before = anonymous_bytes(os.getpid()) or 0
    check_requests(server, 19_000, seed=3)
    assert (anonymous_bytes(os.getpid()) or 0) - before < 32 << 20
