"""Threat T9 by hand: each field with values that it cannot have, each route by each method; names, origins.

What is here is only the status; what some of them are told is in `test_hostile.py`. nano, CPU.
"""

import codecs
import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.runtimes.serve.serving import QUESTION, ROOT, asked, data_url, running
from tests.runtimes.serve.test_hostile import (
    ACCEPTED,
    BODIES,
    JSON,
    check_error,
    field,
    said,
    user,
    with_part,
)

CHAT = "/v1/chat/completions"
NOT_INTS: tuple[Any, ...] = (-1, "5", 1.5, True, [], {}, [1], "")
NOT_FLOATS: tuple[Any, ...] = ("0.5", True, [], {}, [0.5], -3, 11, "NaN", 1e308)
NOT_BOOLS: tuple[Any, ...] = (1, 0, "true", "yes", [], {})
NOT_TEXTS: tuple[Any, ...] = (1, [], {}, True, 1.5)
# Field -> what it cannot be.
FIELDS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "top_k", "seed"), NOT_INTS),
    **dict.fromkeys(("temperature", "top_p", "min_p"), NOT_FLOATS),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "repetition_penalty"), NOT_FLOATS),
    **dict.fromkeys(("stream", "logprobs"), NOT_BOOLS),
    "model": NOT_TEXTS,
    "grammar": (*NOT_TEXTS, "", "x" * 65_537, "root :=", "root ::= other", "root ::= [", '::= "a"'),
    "stop": (1, True, {}, "", [1], [""], [None], [[]], "x" * 257, ["x"] * 17),
    "response_format": (
        *("json", 1, True, [], {}, {"type": "x"}, {"type": None}, {"type": "json_schema"}, {"type": []}),
        *({"type": "text", "json_schema": {"schema": {}}}, {"type": "json_object", "x": 1}),
    ),
    "messages": (None, {}, "x", 1, [], [None], [1], ["x"], [[]], [{}], [user("x")] * 257),
    **{name: (["x"],) for name in ("tools", "functions", "modalities", "prediction", "audio")},
    **dict.fromkeys(("tool_choice", "function_call", "verbosity", "reasoning_effort"), ("auto",)),
    "n": (0, 2, -1, 10**9, 1.5, "1"),
    "logit_bias": ({"50256": -100}, [1], "x"),
    "parallel_tool_calls": (True, 1),
    "web_search_options": ({},),
}  # fmt: skip
UNKNOWN: tuple[Any, ...] = (
    *(
        "Model",
        "max-tokens",
        "maxTokens",
        "temp",
        "topP",
        "n_predict",
        "n_discard",
        "id_slot",
        "cache_prompt",
    ),
    *("mirostat", "tfs_z", "typical_p", "dry_multiplier", "chat_template", "samplers", "lora", "ignore_eos"),
    *("stop_token_ids", "best_of", "echo", "suffix", "prompt", "__class__", "", " ", "\0", "x" * 1000),
)
ROLES: tuple[Any, ...] = (1, None, "", "USER", "tool", "function", "root", ["user"])
CONTENTS: tuple[Any, ...] = (None, 1, True, {}, [], [1], [None], [[]], [{}], "", " \n")
NOT_STREAM_OPTIONS: tuple[Any, ...] = (1, [], "x", {"x": 1}, {"include_usage": 1})
KINDS: tuple[Any, ...] = (1, None, "", "image", "TEXT", "file", "input_audio", "video_url")
URLS: tuple[Any, ...] = (None, 1, [], {}, {"url": None}, {"url": 1}, {"url": ""}, {"url": "x", "x": 1}, "x")
IDS: tuple[Any, ...] = (None, 1, "", "x", "f" * 63, "F" * 64, "../x", ["f" * 64])
ORDERS: tuple[Any, ...] = ("a", "ua", "us", "uau" + "a", "sa", "ssa", "", "s")
NAMES = {"u": "user", "a": "assistant", "s": "system"}
TEXTS: tuple[bytes, ...] = (
    *(b"null", b"true", b"1", b'"x"', b"[]", b"{", b"}", b"[1,]", b"{'a': 1}", b"{a: 1}", b"{} {}", b"{} x"),
    *(b'{"a": 0x10}', b'{"a": 01}', b'{"a": +1}', b'{"a": .5}', b'{"a": Infinity}', b'{"a": -Infinity}'),
    *(b'{"a": "\x01"}', b'{"a": "\\x41"}', b"// x\n{}", b"\0", b"\xff\xfe", b'{"a": {"b": 1, "b": 2}}'),
    *(codecs.BOM_UTF8 + b"{}", '{"a": 1}'.encode("utf-16"), '{"a": "é"}'.encode("latin-1")),
    gzip.compress(b"{}"),
)  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
# Route -> what it knows; everything else is 405, and of no route 404.
ROUTES: dict[str, dict[str, int] | None] = {
    "/": {"GET": 200, "HEAD": 200},
    "/health": {"GET": 200, "HEAD": 200},
    "/metrics": {"GET": 200},
    "/v1/models": {"GET": 200},
    "/v1/models/nano": {"GET": 200},
    "/v1/models/nano/proof": {"GET": 200},
    "/v1/models/other": {"GET": 404},
    CHAT: {"POST": 415},
    **dict.fromkeys(("/v1", "/v1/completions", "/v1/embeddings", "/docs", "/openapi.json", "/%00")),
    **dict.fromkeys(("/health/", "/health/x", "/HEALTH", "/v1/models/", "/..%2fhealth", "/health%20")),
}
HOSTS = (
    *("evil.example", "localhost.evil.example", "evil.example:8000", "10.0.0.1", "192.168.0.1:80", "0.0.0.0"),
    *("::1", "[::2]", "[fe80::1]", "169.254.169.254", "127.0.0.1.evil.example", "127.0.0.1@evil.example"),
    *("localhost.", "localhost evil", "1270.0.0.1", "[localhost]", "[", "]", ":80", "nano", "*"),
    "127.0.0.1,evil.example",
)  # fmt: skip
ORIGINS = (
    *("null", "https://evil.example", "http://localhost", "http://localhost:1", "http://127.0.0.1", "file://"),
    *("chrome-extension://x", "http://[::1]:8000", "*", "https://localhost:8000", "http://evil.example/localhost"),
)  # fmt: skip
TYPES = (
    *("", "text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
    *("application/jsonp", "application/json-seq", "application/ld+json", "*/*", "json", ";application/json"),
)  # fmt: skip


def bodies() -> list[Any]:
    """Every body that has something wrong, all of them 400."""
    wrong: list[Any] = [field(**{name: value}) for name, values in FIELDS.items() for value in values]
    wrong += [field(logprobs=True, top_logprobs=value) for value in (*NOT_INTS, 21)]
    wrong += [field(stream=True, stream_options=value) for value in NOT_STREAM_OPTIONS]
    wrong += [field(**{name: 1}) for name in UNKNOWN]
    wrong += [said({"role": role, "content": "x"}) for role in ROLES]
    wrong += [said(user(content)) for content in CONTENTS]
    wrong += [with_part({"type": kind, "text": "x"}) for kind in KINDS]
    wrong += [with_part({"type": "text"}), with_part({"type": "image_url"}), with_part({"type": "image_id"})]
    wrong += [with_part({"type": "image_url", "image_url": url}) for url in URLS]
    wrong += [with_part({"type": "image_id", "image_id": one}) for one in IDS]
    wrong += [said(*({"role": NAMES[one], "content": "x"} for one in order)) for order in ORDERS]
    return wrong


def requests() -> list[tuple[str, str, dict[str, str], int]]:
    """Method, path, headers and status of those without a body."""
    found: list[tuple[str, str, dict[str, str], int]] = [
        (method, path, {}, 404 if known is None else known.get(method, 405))
        for path, known in ROUTES.items()
        for method in METHODS
    ]
    found += [("GET", "/health", {"Host": host}, 421) for host in HOSTS]
    found += [("GET", "/v1/models", {"Origin": origin}, 403) for origin in ORIGINS]
    return found + [("POST", CHAT, {"Content-Type": kind}, 415) for kind in TYPES]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with running() as server, server.client() as found:
        yield found


def check_canary(client: httpx.Client) -> None:
    assert client.post(CHAT, json=asked(QUESTION, data_url())).status_code == 200


def test_no_field_takes_what_it_cannot_be(client: httpx.Client) -> None:
    for body in bodies():
        response = client.post(CHAT, content=json.dumps(body).encode(), headers=JSON)
        assert response.status_code == 400, (str(body)[:300], response.text)
        check_error(response, 400)
    check_canary(client)


def test_what_is_no_json_is_400(client: httpx.Client) -> None:
    for text in TEXTS:
        response = client.post(CHAT, content=text, headers=JSON)
        assert response.status_code == 400, (text, response.text)
        check_error(response, 400)
    check_canary(client)


def test_every_route_and_header_has_its_status(client: httpx.Client) -> None:
    for method, path, headers, status in requests():
        response = client.request(method, path, headers=headers)
        assert response.status_code == status, (method, path, headers, response.text)
        if status >= 400 and method != "HEAD":
            check_error(response, status)
    check_canary(client)


def test_there_are_four_hundred_and_the_page_says_how_many() -> None:
    count = len(bodies()) + len(TEXTS) + len(requests()) + len(BODIES) + len(ACCEPTED)
    assert count >= 400
    assert f"{count} requests by hand" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
