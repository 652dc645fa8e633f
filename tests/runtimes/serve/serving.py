"""A real server on loopback for the tests: nano, uvicorn in a thread, its own port."""

import base64
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

from tinyllava_edge import Model, open_bundle
from tinyllava_edge.runtimes.serve.app import Server
from tinyllava_edge.runtimes.serve.body import BodyReader
from tinyllava_edge.runtimes.serve.connections import TimedConnection
from tinyllava_edge.runtimes.serve.gate import Rules
from tinyllava_edge.runtimes.serve.images import KnownPictures
from tinyllava_edge.runtimes.serve.metrics import Metrics
from tinyllava_edge.runtimes.serve.server import Program, listen, url_of
from tinyllava_edge.runtimes.serve.worker import Served

ROOT = Path(__file__).parents[3]
EMOJI = ROOT / "docs" / "pictures" / "emoji.webp"
CAT = ROOT / "docs" / "pictures" / "cat.jpg"
QUESTION = "What is this?"
LONG = "root ::= [a-z ]{300,400}"  # a grammar of an answer that goes on


class Slowed:
    """nano's language model, which takes its time for each token, counts, and fails when told."""

    def __init__(self, language: Any, seconds: float) -> None:
        self._language, self._seconds = language, seconds
        self.evaluated = 0  # calls
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._language, name)

    def evaluate(self, segment: Any, position: int, *, all_logits: bool = False) -> Any:
        time.sleep(self._seconds)
        self.evaluated += 1
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return self._language.evaluate(segment, position, all_logits=all_logits)


@dataclass
class Running:
    """A server that runs."""

    url: str
    model: Model
    served: Served
    metrics: Metrics
    program: Program

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, verify=False, **options)  # it is no https

    @property
    def language(self) -> Any:
        return self.model.language

    def wait_until(self, what: Any, within_s: float = 10) -> None:
        ends = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < ends
            time.sleep(0.005)


@contextmanager
def running(
    *,
    slow_s: float = 0.0,
    rules: Rules | None = None,
    max_waiting: int = 32,
    parallel: int = 1,
    deadline_s: float = 60,
    body_timeout_s: float = 15,
    pictures: KnownPictures | None = None,
    connection: type[TimedConnection] = TimedConnection,
    grace_s: float = 5,
    store_mb: int = 0,
    bundle: str | Path = "nano",
    with_page: bool = True,
) -> Iterator[Running]:
    """Serve nano until the block ends."""
    with open_bundle(bundle, threads=1, store_mb=store_mb) as model:
        if slow_s:
            model.language = Slowed(model.language, slow_s)
            model.forget()
        metrics = Metrics()
        served = Served("nano", model, metrics, max_waiting=max_waiting, parallel=parallel)
        server = Server(
            {"nano": served},
            metrics,
            rules or Rules(),
            pictures=pictures,
            deadline_s=deadline_s,
            body_reader=BodyReader(body_timeout_s),
            with_page=with_page,
        )
        program = Program(server, [served], grace_s=grace_s, connection=connection)
        listening = listen("127.0.0.1", 0)
        thread = Thread(target=program.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Running(url_of(listening), model, served, metrics, program)
        finally:
            program.should_exit = True
            thread.join(30)
            listening.close()
            served.close(10)
            assert not thread.is_alive()


def data_url(path: Path = EMOJI, kind: str = "webp") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def asked(question: str = QUESTION, *urls: str, **fields: Any) -> dict[str, Any]:
    """A body: one question about some pictures."""
    parts: Sequence[Any] = [
        {"type": "text", "text": question},
        *({"type": "image_url", "image_url": {"url": url}} for url in urls),
    ]
    return {"model": "nano", "messages": [{"role": "user", "content": parts}], **fields}
