"""The command as its owner meets it: how it starts, refuses and ends. nano, CPU."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.runtimes.serve.serving import ROOT, asked
from tinyllava_edge.runtimes.serve.cli import KEY_VARIABLE

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_shells_code(number: signal.Signals) -> None:
    with started(**{KEY_VARIABLE: KEY}) as (process, url):
        headers = {"Authorization": f"Bearer {KEY}"}
        assert httpx.post(f"{url}/v1/chat/completions", json=asked(), timeout=30).status_code == 401
        answer = httpx.post(f"{url}/v1/chat/completions", json=asked(), headers=headers, timeout=30)
        assert answer.status_code == 200
        process.send_signal(number)
        printed, said = process.communicate(timeout=20)
        assert (process.returncode, printed, said) == (128 + number, "", "tinyllava-edge: stopped.\n")


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


def test_what_other_machines_reach_needs_a_key(tmp_path: Path) -> None:
    assert_refused("nano", "--host", "0.0.0.0", "--port", "0", named=("0.0.0.0", "--api-key-file"))
    short = tmp_path / "keys"
    short.write_text(f"{KEY}\nshort\n")
    assert_refused("nano", "--api-key-file", short, named=(str(short), "key 2", "16"))
    short.write_text("\n")
    assert_refused("nano", "--api-key-file", short, named=(str(short), "no API key"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("absent",), ("absent",)),
        (("nano", "tests/../nano"), ("same name",)),
        (("nano", "--allow-origin", "example.org/x"), ("example.org/x", "https://")),
        (("nano", "--host", "no.such.host.invalid", "--port", "0"), ("no.such.host.invalid",)),
    ],
)
def test_what_cannot_be_served_is_one_line(options: tuple[str, ...], named: tuple[str, ...]) -> None:
    assert_refused(*options, *(() if "--port" in options else ("--port", "0")), named=named)
