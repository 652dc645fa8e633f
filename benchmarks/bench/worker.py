"""One cell of a comparison in its own process: `python -m tinyllava_edge.benchmarks.bench.worker JSON`.

Opens one runtime with one pair of variants, then answers each job on its input with one line of JSON. Between
jobs it waits for input, so it takes no time from the cell that is measured.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.console import json_lines
from tinyllava_edge.errors import TinyLlavaEdgeError
from tinyllava_edge.memory import peak_memory_bytes
from tinyllava_edge.runtimes.base import BackendOptions, LanguageBackend, VisionBackend
from tinyllava_edge.runtimes.model import Model
from tinyllava_edge.runtimes.registry import open_backends

from .replay import Call, Recorder, replay

Say = Callable[[dict[str, Any]], None]
_DIGITS = 4  # of a time in ms: 0.1 us


@dataclass(frozen=True)
class Cell:
    """What is measured.

    Attributes:
        name: unique in a comparison.
        model: name of the bundle in the comparison.
        runtime: name of the runtime.
        bundle: its directory.
        options: how it is opened; variants are None where the runtime computes from the checkpoint.
    """

    name: str
    model: str
    runtime: str
    bundle: Path
    options: BackendOptions


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run does: one picture, a question, a fixed number of greedy tokens; then a second question."""

    picture: str
    question: str
    second_question: str
    num_tokens: int


class OpenCell:
    """A cell's backends, and what is asked of them.

    Args:
        cell: what to open.
        request: what a run does.
    """

    def __init__(self, cell: Cell, request: Request) -> None:
        self._bundle = Bundle.open(cell.bundle)
        self._request = request
        backends = open_backends(cell.runtime, self._bundle, cell.options)
        self._vision: VisionBackend = backends[0]
        self._language: LanguageBackend = backends[1]
        self._model = Model(_endless(self._bundle), self._vision, self._language)
        self._calls: list[Call] = []

    def close(self) -> None:
        """Free the backends."""
        self._model.close()

    def facts(self) -> dict[str, Any]:
        """What was opened, in the backends' own words."""
        return {
            "vision_backend": self._vision.name,
            "language_backend": self._language.name,
            "library": getattr(self._language, "build", None),
            "context_length": self._language.context_length,
        }

    def measure_request(self) -> dict[str, Any]:
        """The request from nothing, and then the second question about the same picture.

        The first one encodes the picture and fills an empty context. The second one is asked by itself,
        with the same picture: its embeddings and the context up to its end are there already.
        """
        self._model.forget()
        warm = self._ask(self._model, self._request.question)
        return {"warm": warm, "cached": self._ask(self._model, self._request.second_question)}

    def measure_raw(self) -> dict[str, Any]:
        """The backend calls of the request, with nothing around them."""
        if not self._calls:
            self._calls = self._record_calls()
        return {name: round(ms, _DIGITS) for name, ms in replay(self._calls).items()}

    def answers(self, job: dict[str, Any], say: Say) -> dict[str, Any]:
        """Answers to a file of questions, seeing and blind; a line for each on the way."""
        from tinyllava_edge.benchmarks.evals.questions import read_questions
        from tinyllava_edge.benchmarks.evals.scores import ask_all

        questions = read_questions(Path(job["questions"]), Path(job["images"]))
        model = Model(self._bundle, self._vision, self._language)  # ends its answers as it should
        kinds = {"seeing": False, "blind": True}
        return {
            kind: ask_all(
                model,
                questions,
                blind=blind,
                max_tokens=job["max_tokens"],
                on_answer=lambda: say({"more": 1}),
            )
            for kind, blind in kinds.items()
        }

    def _record_calls(self) -> list[Call]:
        calls: list[Call] = []
        recorders: Any = [Recorder(backend, calls) for backend in (self._vision, self._language)]
        self._ask(Model(_endless(self._bundle), *recorders), self._request.question)
        return calls

    def _ask(self, model: Model, question: str) -> dict[str, Any]:
        answer = model.ask(question, [self._request.picture], max_tokens=self._request.num_tokens)
        assert model.last_timings is not None
        timings = {name: _rounded(value) for name, value in asdict(model.last_timings).items()}
        return {**timings, "answer_sha256": hashlib.sha256(answer.encode()).hexdigest()[:16]}


def _endless(bundle: Bundle) -> Bundle:
    """The bundle with a stop id that no token has, so that every answer is of the same length."""
    no_token = bundle.manifest.language.vocab_size
    prompt = bundle.manifest.prompt.model_copy(update={"stop_ids": (no_token,)})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"prompt": prompt}))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    return [_rounded(part) for part in value] if isinstance(value, tuple) else value


def serve(cell: Cell, request: Request, say: Say) -> None:
    """Answer every line of standard input, until it ends; a user's mistake is one line too."""
    try:
        start = time.perf_counter()
        opened = OpenCell(cell, request)
        say({"load_s": time.perf_counter() - start, **opened.facts()})
        for line in sys.stdin:
            job = json.loads(line)
            if job["job"] == "request":
                say(opened.measure_request())
            elif job["job"] == "raw":
                say(opened.measure_raw())
            elif job["job"] == "answers":
                say(opened.answers(job, say))
            else:
                say({"peak_memory_bytes": peak_memory_bytes()})
        opened.close()
    except TinyLlavaEdgeError as error:
        say({"error": " ".join(str(error).split())})


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    serve(TypeAdapter(Cell).validate_python(task["cell"]), Request(**task["request"]), json_lines())
