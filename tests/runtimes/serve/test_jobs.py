"""Whose turn it is; a full queue; clients that go away; deadlines; a model that fails. nano, CPU."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import pytest

from tests.runtimes.serve.serving import EMOJI, LONG, QUESTION, Running, asked, data_url, running
from tinyllava_edge import open_bundle
from tinyllava_edge.errors import BackendError
from tinyllava_edge.runtimes.llamacpp_library import load_library
from tinyllava_edge.runtimes.serve.jobs import FairQueue, Job

SLOW_S = 0.02  # a token
CHAT = "/v1/chat/completions"


def job(client: str) -> Job:
    return Job(client=client, ask=lambda model: model.answer([]), tell=lambda event: None)


def test_clients_take_turns() -> None:
    queue = FairQueue(8)
    jobs = {name: job(name[0]) for name in ("a1", "a2", "a3", "b1", "c1", "c2")}
    for one in jobs.values():
        assert queue.put(one) is None
    taken = [queue.take() for _ in jobs]
    assert taken == [jobs[name] for name in ("a1", "b1", "c1", "a2", "c2", "a3")]


def test_a_full_queue_refuses_who_has_the_most() -> None:
    queue = FairQueue(3)
    first, second, third, other = job("a"), job("a"), job("a"), job("b")
    assert [queue.put(one) for one in (first, second, third)] == [None] * 3
    again = job("a")
    assert queue.put(again) is again
    assert queue.put(other) is third, "the newest of the client that has most makes room"
    last = job("b")
    assert queue.put(last) is last, "two and one are as even as they can be"
    assert [queue.take() for _ in range(3)] == [first, other, second]


def test_a_job_that_is_withdrawn_frees_its_place() -> None:
    queue = FairQueue(1)
    one, two = job("a"), job("a")
    queue.put(one)
    assert queue.put(two) is two
    assert queue.remove(one)
    assert not queue.remove(one)
    assert queue.put(two) is None
    assert queue.close() == [two]
    assert queue.take() is None
    assert queue.put(one) is one


def in_background(server: Running, **fields: Any) -> "tuple[threading.Thread, list[httpx.Response]]":
    found: list[httpx.Response] = []

    def post() -> None:
        with server.client() as client:
            found.append(client.post(CHAT, json=asked(**fields)))

    thread = threading.Thread(target=post)
    thread.start()
    return thread, found


def begin_stream(server: Running, **fields: Any) -> socket.socket:
    """A connection on which an answer has begun."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    body = json.dumps(asked(stream=True, grammar=LONG, max_tokens=300, **fields)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_a_full_queue_is_429_with_the_time_that_was_measured() -> None:
    with running(slow_s=SLOW_S / 2, max_waiting=1) as server, server.client() as client:
        assert client.post(CHAT, json=asked(grammar=LONG, max_tokens=60)).status_code == 200
        with begin_stream(server):
            # One after the other: while the first still waits, the only place is its own.
            server.wait_until(lambda: server.served.num_answering)
            with begin_stream(server):
                server.wait_until(lambda: server.served.num_waiting == 1)
                response = client.post(CHAT, json=asked())
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
        assert 2 <= int(response.headers["retry-after"]) <= 20  # two of 0.6 s, or more on a busy machine
        server.wait_until(lambda: not server.served.num_answering)
        assert client.post(CHAT, json=asked()).status_code == 200


def test_a_client_with_one_request_does_not_wait_for_all_of_another() -> None:
    """Eight of one address, then one of another: it is the second to be answered, or the third."""
    with running(slow_s=SLOW_S / 2) as server, ThreadPoolExecutor(9) as pool:
        ended: list[str] = []

        def post(address: str, max_tokens: int) -> None:
            transport = httpx.HTTPTransport(local_address=address)
            with server.client(transport=transport) as client:
                assert client.post(CHAT, json=asked(grammar=LONG, max_tokens=max_tokens)).status_code == 200
            ended.append(address)

        many = [pool.submit(post, "127.0.0.1", 20) for _ in range(8)]
        server.wait_until(lambda: server.served.num_waiting == 7)
        one = pool.submit(post, "127.0.0.2", 20)
        for future in (one, *many):
            future.result(30)
    assert ended.index("127.0.0.2") in (1, 2)


def test_a_client_that_goes_away_ends_its_answer_within_two_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(slow_s=SLOW_S) as server:
        noticed: list[int] = []
        withdraw = server.served.withdraw

        def noted(*arguments: Any) -> None:
            noticed.append(server.language.evaluated)
            withdraw(*arguments)

        monkeypatch.setattr(server.served, "withdraw", noted)
        with begin_stream(server) as connection:
            while b'"content"' not in connection.recv(65536):
                pass
        server.wait_until(lambda: not server.served.num_answering)
        assert server.language.evaluated <= noticed[0] + 2
        assert server.language.evaluated < 100, "the answer has 300"
        with server.client() as client:
            assert client.post(CHAT, json=asked()).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_while_it_waits_frees_its_place(stream: bool) -> None:
    with running(slow_s=SLOW_S, max_waiting=1) as server:
        with begin_stream(server):
            server.wait_until(lambda: server.served.num_answering)
            with server.client() as client, pytest.raises(httpx.ReadTimeout):
                client.post(CHAT, json=asked(stream=stream), timeout=0.2)
            server.wait_until(lambda: server.served.num_waiting == 0)
        server.wait_until(lambda: not server.served.num_answering)
        assert 'status="499"' in server.metrics.text({"queue_depth": {}, "running": {}})


def test_a_request_ends_at_its_deadline() -> None:
    with running(slow_s=SLOW_S, deadline_s=1) as server, server.client() as client:
        began = time.monotonic()
        response = client.post(CHAT, json=asked(grammar=LONG, max_tokens=300))
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "deadline_exceeded"
        assert time.monotonic() - began < 6
        streamed = client.post(CHAT, json=asked(grammar=LONG, max_tokens=300, stream=True)).text
        events = [line for line in streamed.splitlines() if line.startswith("data: ")]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
        assert client.post(CHAT, json=asked()).status_code == 200


@pytest.mark.parametrize("goes_away", [False, True])
def test_a_prompt_is_evaluated_no_further_when_nobody_wants_it(
    goes_away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twenty batches and more, those behind the deadline, or behind the client's end, are not begun."""
    monkeypatch.setattr("tinyllava_edge.runtimes.llamacpp.BATCH", 4)
    bindings = load_library().bindings
    decode, calls, slow_s = bindings.llama_decode, 0, [0.0]

    def slowly(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        time.sleep(slow_s[0])
        return int(decode(*arguments))

    monkeypatch.setattr(bindings, "llama_decode", slowly)
    question = "What is this, and what is it for, and who has made it? " * 2
    with running(deadline_s=30 if goes_away else 0.3) as server, server.client() as client:
        calls, slow_s[0] = 0, 0.05
        if goes_away:
            with pytest.raises(httpx.ReadTimeout):
                client.post(CHAT, json=asked(question, data_url()), timeout=0.3)
        else:
            assert client.post(CHAT, json=asked(question, data_url())).status_code == 503
        server.wait_until(lambda: not server.served.num_answering)
        assert 1 <= calls <= 12, "there are some 25"
        slow_s[0] = 0.0
        answer = client.post(CHAT, json=asked(QUESTION, data_url())).json()["choices"][0]["message"][
            "content"
        ]
        assert answer == open_bundle("nano", threads=1).ask(QUESTION, EMOJI)


@pytest.mark.parametrize(
    "failure", [BackendError("/root/model.gguf failed at 0xdeadbeef"), RuntimeError("llama_decode: -3")]
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_model_that_fails_is_500_and_the_next_request_is_answered(
    failure: Exception, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(slow_s=0.001) as server, server.client() as client:
        golden = client.post(CHAT, json=asked()).json()["choices"]
        server.language.failure = failure
        response = client.post(CHAT, json=asked("What else?", stream=stream))
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
        assert "root" not in response.text
        assert "0x" not in response.text
        assert client.post(CHAT, json=asked()).json()["choices"] == golden
    assert str(failure) in capsys.readouterr().err


def test_files_that_are_removed_while_it_serves_change_nothing(tmp_path: Path) -> None:
    bundle = copytree(EMOJI.parents[2] / "tinyllava_edge" / "nano" / "bundle", tmp_path / "nano")
    with running(bundle=bundle) as server, server.client() as client:
        before = client.post(CHAT, json=asked(QUESTION, data_url())).json()["choices"]
        for file in [path for path in bundle.rglob("*") if path.is_file()]:
            file.unlink()
        after = client.post(CHAT, json=asked(QUESTION, data_url())).json()["choices"]
        assert after == before
        again = client.post(CHAT, json=asked("And what is that, then?", data_url()))
        assert again.status_code == 200


def test_answers_that_run_when_the_server_ends_are_ended() -> None:
    with running(slow_s=SLOW_S, grace_s=0.5) as server:
        thread, found = in_background(server, grammar=LONG, max_tokens=300)
        server.wait_until(lambda: server.served.num_answering)
        waits, waited = in_background(server)
        server.wait_until(lambda: server.served.num_waiting == 1)
        server.program.should_exit = True
        for one in (thread, waits):
            one.join(10)
        for [response] in (found, waited):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "stopping"


def test_three_at_a_time_are_answered_as_one_and_one_that_goes_away_disturbs_nobody() -> None:
    with running(parallel=3) as server, server.client() as client, ThreadPoolExecutor(2) as pool:
        bodies = [asked(question, data_url(), grammar=LONG, max_tokens=150) for question in ("What?", "Why?")]
        alone = [client.post(CHAT, json=body).json()["choices"][0]["message"] for body in bodies]
        with begin_stream(server) as connection:
            found = [pool.submit(client.post, CHAT, json=body) for body in bodies]
            server.wait_until(lambda: server.served.num_answering == 3)
            connection.recv(65536)
        assert [one.result(30).json()["choices"][0]["message"] for one in found] == alone
        server.wait_until(lambda: not server.served.num_answering)
        assert client.post(CHAT, json=asked()).status_code == 200
