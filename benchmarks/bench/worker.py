"""One cell of a comparison in its own process, which is given it as JSON.

Opens one runtime with one pair of variants, then answers each job on its input with one line of JSON. Between
jobs it waits for input, so it takes no time from the cell that is measured.

A request's calls of the two backends are written down, and made again with nothing around them. End to end
over their sum is the stitching overhead: what picture files, prompts, sampling, text and Python cost beside
the libraries' own work.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.console import json_lines
from tinyllava_edge.errors import TinyLlavaEdgeError
from tinyllava_edge.memory import peak_memory_bytes
from tinyllava_edge.module_process import module_command
from tinyllava_edge.runtimes.base import LanguageBackend, VisionBackend
from tinyllava_edge.runtimes.context import Context, PictureRows
from tinyllava_edge.runtimes.model import Model
from tinyllava_edge.runtimes.registry import open_backends

from .grow import Grower

Say = Callable[[dict[str, Any]], None]
JOBS = ("requests", "raw", "answers", "grow", "peak", "forced")  # of a worker that does not say which
_RECORDED = ("encode", "evaluate", "last_logits", "truncate")
_DIGITS = 4  # of a time in ms: 0.1 us


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run does: one picture, a question, a fixed number of greedy tokens; then a second question."""

    picture: str
    question: str
    second_question: str
    num_tokens: int


def cell_command(cell: Cell, request: Request) -> list[str]:
    """What starts a cell's process."""
    task = json.dumps({"cell": asdict(cell), "request": asdict(request)}, default=str)
    return module_command("tinyllava_edge.benchmarks.bench.worker", task)


@dataclass
class Recorder:
    """Stands in front of a backend and writes down the calls that compute something."""

    backend: VisionBackend | LanguageBackend
    calls: list[partial[Any]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.backend, name)
        if name not in _RECORDED:
            return found

        def recorded(*positional: Any, **named: Any) -> Any:
            self.calls.append(partial(found, *positional, **named))
            return found(*positional, **named)

        return recorded


def replay(calls: Sequence[partial[Any]]) -> dict[str, float]:
    """Make the calls again, each timed by itself.

    Args:
        calls: of one request from nothing, in their order: the first choice of a token ends the prefill.

    Returns:
        ms of each stage, and of all of them together.
    """
    spent = {"vision_ms": 0.0, "prefill_ms": 0.0, "decode_ms": 0.0}
    stage = "prefill_ms"
    for call in calls:
        start = time.perf_counter_ns()
        call()
        took = (time.perf_counter_ns() - start) / 1e6
        name = call.func.__name__
        spent["vision_ms" if name == "encode" else stage] += took
        if name == "last_logits":
            stage = "decode_ms"
    return {**spent, "total_ms": sum(spent.values())}


class OpenCell:
    """A cell's backends, and what is asked of them: each public method but `close` is a job.

    Args:
        cell: what to open.
        request: what a run does.
        say: writes a line on the way to a result.
    """

    def __init__(self, cell: Cell, request: Request, say: Say = lambda line: None) -> None:
        self._bundle = Bundle.open(cell.bundle).at_tokens(cell.options.tokens, cell.options.vision)
        self._request, self._say = request, say
        self._vision, self._language = open_backends(cell.runtime, self._bundle, cell.options)
        self._model = Model(_endless(self._bundle), self._vision, self._language)
        self._grower = Grower(self._model, request.picture)
        self._calls: list[partial[Any]] = []

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

    def requests(self) -> dict[str, Any]:
        """The request from nothing, and then the second question about the same picture.

        The first one encodes the picture and fills an empty context. The second one is asked by itself,
        with the same picture: its embeddings and the context up to its end are there already.
        """
        self._model.forget()
        warm = self._ask(self._model, self._request.question)
        return {"warm": warm, "cached": self._ask(self._model, self._request.second_question)}

    def raw(self) -> dict[str, Any]:
        """The backend calls of the request, with nothing around them."""
        if not self._calls:
            self._calls = self._record_calls()
        return {name: round(ms, _DIGITS) for name, ms in replay(self._calls).items()}

    def forced(self, ids: Sequence[int] | None, output: str) -> dict[str, Any]:
        """Logits [tokens, vocab] from which each id of an answer to the request is predicted, in a .npy file.

        Args:
            ids: of the answer; its own greedy one by default, which is returned.
            output: the file.
        """
        self._model.forget()
        rows = iter(self._model.encode(self._request.picture))
        prompt = self._model.tokenize([(self._request.question, None)], honour_special=False, num_pictures=1)
        context = Context(self._language)
        context.prefill([PictureRows(b"", next(rows)) if token < 0 else token for token in prompt])
        given, logits = list(ids or ()), [context.last_logits()]
        answer = given[:1] or [int(logits[0].argmax())]
        while len(answer) < (len(given) or self._request.num_tokens):
            context.append(answer[-1])
            logits.append(context.last_logits())
            answer.append(given[len(answer)] if given else int(logits[-1].argmax()))
        np.save(output, np.stack(logits))
        self._model.forget()
        return {"written": True, "ids": answer}

    def answers(self, questions: str, images: str) -> dict[str, Any]:
        """Answers to a file of questions, seeing and blind; a line for each on the way."""
        from tinyllava_edge.benchmarks.evals.questions import read_questions
        from tinyllava_edge.benchmarks.evals.scores import ask_all

        asked = read_questions(Path(questions), Path(images))
        model = Model(self._bundle, self._vision, self._language)  # ends its answers as it should
        return {
            kind: ask_all(model, asked, blind=kind == "blind", on_answer=lambda: self._say({"more": 1}))
            for kind in ("seeing", "blind")
        }

    def grow(self, axis: str, amount: int) -> dict[str, Any]:
        """One point of how time grows with an amount."""
        point: dict[str, Any] = getattr(self._grower, axis)(amount)
        return point

    def peak(self) -> dict[str, int]:
        """Most memory that the process has held."""
        return {"peak_memory_bytes": peak_memory_bytes()}

    def _record_calls(self) -> list[partial[Any]]:
        calls: list[partial[Any]] = []
        recorders: Any = [Recorder(backend, calls) for backend in (self._vision, self._language)]
        self._ask(Model(_endless(self._bundle), *recorders), self._request.question)
        return calls

    def _ask(self, model: Model, question: str) -> dict[str, Any]:
        start = time.monotonic()
        answer = model.ask(question, [self._request.picture], max_tokens=self._request.num_tokens)
        window = [start, time.monotonic()]  # a clock that all processes share
        assert model.last_timings is not None
        timings = {name: _rounded(value) for name, value in asdict(model.last_timings).items()}
        digest = hashlib.sha256(answer.encode()).hexdigest()[:16]
        return {**timings, "answer_sha256": digest, "window_s": window}


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
        opened = OpenCell(cell, request, say)
        say({"load_s": time.perf_counter() - start, **opened.facts()})
        for line in sys.stdin:
            job = json.loads(line)
            say(getattr(opened, job.pop("job"))(**job))
        opened.close()
    except TinyLlavaEdgeError as error:
        say({"error": " ".join(str(error).split())})


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    serve(TypeAdapter(Cell).validate_python(task["cell"]), Request(**task["request"]), json_lines())
