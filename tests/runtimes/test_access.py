"""One model, several threads; a fork after opening; a model that nobody closed."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyllava_edge
from tests.runtimes import bundles
from tests.runtimes.bundles import picture
from tests.runtimes.scripted_models import scripted_model
from tinyllava_edge import open_bundle
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BackendError
from tinyllava_edge.memory import anonymous_bytes
from tinyllava_edge.runtimes.chat import Chat

ANSWER = "the cat and the dog"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def in_thread(work: Callable[[], Any]) -> Any:
    """What a function gives, or raises, in another thread."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BackendError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(timeout=30)
    assert not thread.is_alive()
    return found[0]


def test_threads_that_ask_wait_for_each_other(bundle: Bundle) -> None:
    with open_bundle(bundle, threads=1) as model:
        questions = [f"what is {number}" for number in range(4)]
        alone = [model.ask(question, picture(1), max_tokens=12) for question in questions]
        found: dict[str, str] = {}

        def ask(question: str) -> None:
            for _ in range(3):
                found[question] = model.ask(question, picture(1), max_tokens=12)

        threads = [threading.Thread(target=ask, args=[question]) for question in questions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert [found[question] for question in questions] == alone


def started(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """A thread that has begun to do something, and where what it gave will be."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    return thread, found


def finished(waiting: tuple[threading.Thread, list[Any]]) -> Any:
    waiting[0].join(timeout=30)
    assert not waiting[0].is_alive()
    return waiting[1][0]


@pytest.mark.parametrize("end", ["read", "close", "drop", "ask", "die"])
def test_a_question_waits_for_the_stream_that_another_thread_reads(bundle: Bundle, end: str) -> None:
    model = scripted_model(bundle, ANSWER)
    go = threading.Event()

    def read() -> str:
        stream: Any = model.answer([("what", None)])
        pieces = [next(stream)]
        held.append(stream if end == "die" else None)
        assert go.wait(30)
        if end == "read":
            pieces += list(stream)
        elif end == "close":
            stream.close()
        elif end == "ask":
            assert model.ask("another") == ANSWER  # the same thread's next question closes its own stream
            with pytest.raises(StopIteration):
                next(stream)
        stream = None
        if end == "drop":
            assert resumed.wait(30)
        return "".join(pieces)

    held: list[Any] = []
    resumed = threading.Event()
    reader = started(read)
    while not held:
        time.sleep(0.001)
    asked = started(lambda: model.ask("why"))
    asked[0].join(0.15)
    assert asked[0].is_alive(), "it did not wait"
    go.set()
    assert finished(asked) == ANSWER
    resumed.set()
    said = finished(reader)
    assert said == ANSWER if end == "read" else ANSWER.startswith(said) and said != ANSWER


def test_streams_of_many_threads_are_all_whole(bundle: Bundle) -> None:
    model = scripted_model(bundle, ANSWER)
    threads = [started(lambda: ["".join(model.answer([("q", None)])) for _ in range(3)]) for _ in range(6)]
    assert [finished(thread) for thread in threads] == [[ANSWER] * 3] * 6


def test_a_stream_that_nobody_reads_is_ended_for_another_thread_and_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllava_edge.runtimes.stream.IDLE_S", 0.2)
    model = scripted_model(bundle, ANSWER)
    stream = model.answer([("what", None)])
    next(stream)
    assert in_thread(lambda: model.ask("why")) == ANSWER
    with pytest.raises(BackendError, match="another thread closed the model, or asked it"):
        next(stream)
    assert model.ask("what") == ANSWER


def test_closing_waits_for_no_stream_and_its_reader_is_told(bundle: Bundle) -> None:
    model = scripted_model(bundle, ANSWER)
    stream = model.answer([("what", None)])
    next(stream)
    in_thread(model.close)
    with pytest.raises(BackendError, match="another thread closed"):
        next(stream)
    with pytest.raises(BackendError, match="is closed"):
        model.ask("what")


def test_what_is_printed_says_what_it_is(bundle: Bundle) -> None:
    model = scripted_model(bundle, ANSWER)
    stream = model.chat("what")
    assert repr(stream) == "<Stream open, 0 tokens: ''>"
    "".join(stream)
    assert repr(stream).startswith("<Stream ended by stop_id, ")
    assert repr(stream).endswith(f" tokens: {ANSWER!r}>")
    assert repr(model) == "<Model tiny: vision scripted, language scripted, context 1024>"
    assert repr(model._chat) == "<Chat of 1 turns, 0 pictures, last 'what'>"
    model.close()
    assert ", closed>" in repr(model)
    assert {"open_bundle", "Model", "open_bundle_async"} <= set(dir(tinyllava_edge))


def test_a_stream_may_be_read_in_another_thread_than_asked(bundle: Bundle) -> None:
    stream = scripted_model(bundle, ANSWER).answer([("what", None)])
    assert next(stream) + in_thread(lambda: "".join(stream)) == ANSWER


def test_a_call_from_within_a_call_is_refused_and_the_model_still_works(bundle: Bundle) -> None:
    model = scripted_model(bundle, ANSWER)
    evaluate = model.language.evaluate
    seen: list[str] = []

    def evaluate_and_ask(*arguments: Any, **named: Any) -> Any:
        for call in (lambda: model.ask("why"), model.close, model.reset, stream.close):
            with pytest.raises(BackendError, match="called again while") as error:
                call()
            seen.append(str(error.value))
        return evaluate(*arguments, **named)

    model.language.evaluate = evaluate_and_ask  # type: ignore[method-assign]
    stream = model.answer([("what", None)])
    next(stream)
    model.language.evaluate = evaluate  # type: ignore[method-assign]
    assert len(seen) == 4
    assert "".join(model.chat("what")) == ANSWER


def test_an_error_of_whoever_reads_leaves_the_model_as_it_was(bundle: Bundle) -> None:
    model = scripted_model(bundle, ANSWER)
    chat = Chat(model)
    caught: list[Any] = []
    for _ in range(3):
        try:
            for _ in chat.ask("what"):
                raise ZeroDivisionError
        except ZeroDivisionError as error:
            caught.append(error)  # and with its traceback the stream
        chat.reset()
        assert "".join(chat.ask("what")) == ANSWER
        chat.reset()
    abandoned = [model.answer([("what", None)]) for _ in range(3)]
    first = next(abandoned[2])
    assert [list(stream) for stream in abandoned[:2]] == [[], []]
    assert "".join([first, *abandoned[2]]) == ANSWER


CHILD = """
import os, sys, threading, time
from tinyllava_edge import open_bundle
from tinyllava_edge.errors import BackendError
model = open_bundle(sys.argv[1], threads=2)
stream = model.answer([("what", None)], max_tokens=8)
first = next(stream)
child = os.fork()
if child == 0:
    refused = 0
    for call in (lambda: model.ask("what"), lambda: next(stream), lambda: model.chat("what"), model.reset,
                 lambda: model.encode([]), lambda: model.logits([("what", None)])):
        try:
            call()
        except BackendError as error:
            refused += str(os.getppid()) in str(error) and "after a fork" in str(error)
    stream.close()
    with model:
        pass
    del model, stream, call
    sys.exit(refused)
deadline = time.monotonic() + 30
while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
    time.sleep(0.01)
if not ended[0]:
    os.kill(child, 9)
print(os.waitstatus_to_exitcode(ended[1]) if ended[0] else "hangs", len("".join([first, *stream])) > 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_refused_and_leaves_what_is_the_parents(bundle: Bundle) -> None:
    # From 3.12 on Python warns of a fork while there are threads; a user sees that once, at most.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", CHILD, str(bundle.root)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (result.stdout, result.stderr) == ("6 True\n", "")


DROPPED = """
import sys
from tinyllava_edge import open_bundle
model = open_bundle(sys.argv[1], threads=2)
stream = model.answer([("what", None)], max_tokens=8)
next(stream)
"""


def test_a_program_that_closes_nothing_ends_without_a_word(bundle: Bundle) -> None:
    command = [sys.executable, "-c", DROPPED, str(bundle.root)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux tells threads and memory")
def test_a_model_that_is_dropped_is_freed(bundle: Bundle) -> None:
    def use() -> "weakref.ref[Any]":
        model = open_bundle(bundle, threads=2, context_length=1024)
        next(model.chat("what", picture(1), max_tokens=4))
        return weakref.ref(model)

    def state() -> tuple[int, int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").count(str(bundle.root))
        return len(os.listdir("/proc/self/task")), maps, anonymous_bytes(os.getpid()) or 0

    for _ in range(3):
        assert use()() is None
    threads, maps, memory = state()
    for _ in range(8):
        use()
    after = state()
    assert after[:2] == (threads, 0) == (threads, maps)
    assert after[2] - memory < 8 << 20  # a context is 2 MB, llama.cpp's working memory of it 20


def test_an_array_of_an_answer_outlives_its_model(bundle: Bundle) -> None:
    model = open_bundle(bundle, threads=1)
    logits = model.logits([("what", None)])
    copied = logits.copy()
    model.close()
    del model
    gc.collect()
    np.testing.assert_array_equal(logits, copied)
