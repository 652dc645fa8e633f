"""The command as its owner meets it: how it starts, refuses and ends. nano, CPU."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.runtimes.serve.serving import ROOT, asked
from tinyllava_edge.errors import UsageError
from tinyllava_edge.runtimes.serve.cli import KEY_VARIABLE, _check_origins, _names, _read_keys
from tinyllava_edge.runtimes.serve.server import listen

KEY = "a-key-of-24-characters-!"


def command(*options: str | Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tinyllava_edge", "serve", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@contextmanager
def started(*options: str | Path, **environment: str) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    """The process and its URL, once it answers."""
    process = command("nano", "--port", "0", "--threads", "1", *options, **environment)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"(http://\S+)/v1", line):
                yield process, found[1]
                break
        else:
            pytest.fail("it did not start")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_the_shells_code(number: signal.Signals) -> None:
    with started(**{KEY_VARIABLE: KEY}) as (process, url):
        headers = {"Authorization": f"Bearer {KEY}"}
        assert httpx.post(f"{url}/v1/chat/completions", json=asked(), timeout=30).status_code == 401
        answer = httpx.post(f"{url}/v1/chat/completions", json=asked(), headers=headers, timeout=30)
        assert answer.status_code == 200
        process.send_signal(number)
        printed, said = process.communicate(timeout=20)
        assert (process.returncode, printed, said) == (128 + number, "", "tinyllava-edge: stopped.\n")


def test_a_signal_that_its_caller_ignores_does_not_end_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with started() as (process, url):
            process.send_signal(signal.SIGHUP)
            assert httpx.post(f"{url}/v1/chat/completions", json=asked(), timeout=30).status_code == 200
    finally:
        signal.signal(signal.SIGHUP, before)


def assert_refused(*options: str | Path, named: tuple[str, ...], **environment: str) -> None:
    process = command(*options, **environment)
    printed, said = process.communicate(timeout=30)
    assert (process.returncode, printed) == (2, "")
    assert said.startswith("tinyllava-edge: ")
    assert said.count("\n") == 1
    for name in named:
        assert name in said


def test_two_servers_on_one_port_are_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_refused("nano", "--port", port, named=(port, "in use", "--port"))


def test_what_other_machines_reach_needs_a_key() -> None:
    assert_refused("nano", "--host", "0.0.0.0", "--port", "0", named=("0.0.0.0", "--api-key-file"))


def test_a_file_of_keys_has_good_ones(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for text, named in ((f"{KEY}\nshort\n", "key 2 must be 16"), (f"{KEY} x", "key 1"), ("\n", "no API key")):
        file.write_text(text)
        with pytest.raises(UsageError, match=f"{file}: {named}"):
            _read_keys(file)
    file.write_text(f"{KEY}\n\n{KEY}2 \n")
    assert _read_keys(file) == [KEY, f"{KEY}2"]


@pytest.mark.parametrize(
    ("work", "named"),
    [
        (lambda: _names(["nano", "tests/../nano"]), "same name"),
        (lambda: _check_origins(["example.org/x"]), r"example.org/x.*https://"),
        (lambda: listen("no.such.host.invalid", 0), "no.such.host.invalid"),
    ],
)
def test_what_cannot_be_served_is_said(work: Callable[[], object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        work()


def test_variants_are_models_and_the_page_may_be_left_out() -> None:
    with started("--language", "q8_0,f16", "--no-page") as (_, url):
        models = httpx.get(f"{url}/v1/models").json()["data"]
        assert [(each["id"], each["language"].split()[1][:4]) for each in models] == [
            ("nano:q8_0", "q8_0"),
            ("nano:f16", "f16,"),
        ]
        for each in models:
            answer = httpx.post(
                f"{url}/v1/chat/completions", json={**asked(), "model": each["id"]}, timeout=30
            )
            assert (answer.status_code, answer.json()["model"]) == (200, each["id"])
        assert httpx.get(url).status_code == 404


def test_a_bundle_that_is_not_there_is_one_line() -> None:
    assert_refused("absent", "--port", "0", named=("absent",))
