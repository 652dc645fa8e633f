"""What a rival's process hears and says: the lines of `worker.py`, with nothing but Python and numpy.

Runs in the rival's environment, where this package is not installed: `rivals.py` starts it by its file.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

Sample = dict[str, Any]
PICTURE = -200  # stands for a picture among a prompt's ids
JOBS = ("requests", "peak", "forced")
_STAGES = ("tokenize", "preprocess", "vision", "prefill")
_DIGITS = 4


@dataclass(frozen=True)
class Prompt:
    """A prompt as ids, one `PICTURE` among them, and as text with `<image>` for whoever takes no ids."""

    ids: tuple[int, ...]
    text: str

    def parts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before the picture and behind it."""
        where = self.ids.index(PICTURE)
        return self.ids[:where], self.ids[where + 1 :]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a rival is to open and to answer.

    Attributes:
        rival: module of this folder that knows how.
        files: what it reads, by name: "gguf", "mmproj", "checkpoint", "model", "program".
        settings: of the rival: "dtype", for example.
        threads: how many it may use.
        context_length: positions of its context, where it has to say so.
        num_tokens: tokens of every answer, whatever they are.
        tokens_per_picture: rows that the bundle makes of a picture; one more where the mmproj file gives the
            token in front of it, which the prompts then leave out.
        picture: PNG of the picture at the tower's own size.
        pixels: .npy of its pixels [1, 3, side, side] float32.
        first: the question.
        second: what is asked next about the same picture.
        log: file for whatever the rival's libraries print.
    """

    rival: str
    files: dict[str, str]
    settings: dict[str, Any]
    threads: int
    context_length: int
    num_tokens: int
    tokens_per_picture: int
    picture: str
    pixels: str
    first: Prompt
    second: Prompt
    log: str

    @classmethod
    def parse(cls, text: str) -> "Task":
        """From the JSON of `asdict`."""
        raw = json.loads(text)
        for name in ("first", "second"):
            raw[name] = Prompt(tuple(raw[name]["ids"]), raw[name]["text"])
        return cls(**raw)


class Peer(Protocol):
    """What a rival's module has under this name; its constructor takes a `Task` and opens the model."""

    def facts(self) -> dict[str, Any]:
        """Versions, and `cannot_match`: what differs from the bundle's own cells."""
        ...

    def answer(self, prompt: Prompt) -> Sample:
        """One answer from nothing, greedy, of `num_tokens` tokens."""
        ...

    def second(self) -> Sample | None:
        """The second question after the first one, or None where nothing is kept between the two."""
        ...

    def forced(self, prompt: Prompt, ids: Sequence[int]) -> Any:
        """Logits [tokens, vocab] from which each of `ids` is predicted, or None where there are none."""
        ...

    def peak_bytes(self) -> int:
        """Most memory that whatever computes has held."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


@dataclass
class Marks:
    """Collects the marks of one answer while it runs; a stage that is never timed is None."""

    started_ns: int = field(default_factory=time.perf_counter_ns)
    window_start_s: float = field(default_factory=time.monotonic)
    spent_ms: dict[str, float] = field(default_factory=dict)
    token_ns: list[int] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter_ns()
        yield
        self.spent_ms[name] = self.spent_ms.get(name, 0.0) + (time.perf_counter_ns() - start) / 1e6

    def mark_token(self) -> None:
        """A token is ready for the caller."""
        self.token_ns.append(time.perf_counter_ns())

    def rest_is_prefill(self) -> None:
        """What passed until the first token, and was no other stage."""
        self.spent_ms["prefill"] = self.first_token_ms - sum(self.spent_ms.values())

    @property
    def first_token_ms(self) -> float:
        """From the question to the first token."""
        return (self.token_ns[0] - self.started_ns) / 1e6

    def sample(
        self,
        ids: Sequence[int] | None,
        *,
        prompt_tokens: int,
        text: str | None = None,
        reused_tokens: int | None = 0,
    ) -> Sample:
        """The finished answer, with the fields of the package's own `Timings`.

        Args:
            ids: of the answer, or None where only its text is given out.
            prompt_tokens: positions of the prompt, the picture's included.
            text: of the answer, likewise.
            reused_tokens: positions that were there already; None where it does not say.
        """
        said = json.dumps(list(ids)) if ids is not None else text or ""
        return {
            **{f"{stage}_ms": _rounded(self.spent_ms.get(stage)) for stage in _STAGES},
            "first_token_ms": _rounded(self.first_token_ms),
            "next_token_ms": [_rounded((b - a) / 1e6) for a, b in pairwise(self.token_ns)],
            "total_ms": _rounded((self.token_ns[-1] - self.started_ns) / 1e6),
            "prompt_tokens": prompt_tokens,
            "reused_tokens": reused_tokens,
            "generated_tokens": len(self.token_ns),
            "output_ids": None if ids is None else list(ids),
            "answer_sha256": hashlib.sha256(said.encode()).hexdigest()[:16],
            "window_s": [self.window_start_s, time.monotonic()],
        }


class TokenMarks:
    """What transformers' `generate` tells of its tokens: the prompt first, then each token."""

    def __init__(self, marks: Marks) -> None:
        self._marks, self._has_prompt = marks, False

    def put(self, value: Any) -> None:
        """One token, or the prompt."""
        if self._has_prompt:
            self._marks.mark_token()
        self._has_prompt = True

    def end(self) -> None:
        """Nothing is left to tell."""


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def peak_of(process_id: int | str = "self") -> int:
    """Most memory that a process has held, in bytes (VmHWM, which Linux counts in KiB)."""
    for line in Path(f"/proc/{process_id}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return 0


class Jobs:
    """The jobs of `worker.py` that a rival is given."""

    def __init__(self, peer: Peer, task: Task) -> None:
        self._peer, self._task = peer, task

    def requests(self) -> Sample:
        """The request from nothing, and the second question about the same picture."""
        warm, second = self._peer.answer(self._task.first), self._peer.second()
        return {"warm": warm, **({} if second is None else {"cached": second})}

    def forced(self, ids: Sequence[int], output: str) -> Sample:
        """Logits on given answer ids, written to a .npy file; `written` says whether there are any."""
        import numpy as np

        found = self._peer.forced(self._task.first, ids)
        if found is not None:
            np.save(output, np.asarray(found, dtype=np.float32))
        return {"written": found is not None}

    def peak(self) -> Sample:
        """Most memory that the rival has held."""
        return {"peak_memory_bytes": self._peer.peak_bytes()}


def serve(task: Task, open_peer: Callable[[Task], Peer]) -> None:
    """Answer every line of standard input until it ends; what fails is one line, and ends it too.

    Whatever the rival's libraries print goes to the task's log: standard output is for the lines.
    """
    out = os.fdopen(os.dup(1), "w")
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)

    def say(line: Sample) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    try:
        start = time.perf_counter()
        peer = open_peer(task)
        say({"load_s": time.perf_counter() - start, "jobs": JOBS, **peer.facts()})
        jobs = Jobs(peer, task)
        for line in sys.stdin:
            job = json.loads(line)
            say(getattr(jobs, job.pop("job"))(**job))
        peer.close()
    except (
        Exception,
        SystemExit,
    ) as error:  # a rival's libraries raise what they like, and the comparison goes on
        say({"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]})


def main(package: str) -> None:
    """What `rivals.py` starts: a rival that serves, or, with `convert`, one that prepares its files."""
    verb, *rest = sys.argv[1:]
    if verb == "convert":
        rival, source, target, settings = rest
        import_module(f"{package}.{rival}").convert(Path(source), Path(target), json.loads(settings))
    else:
        task = Task.parse(verb)
        serve(task, import_module(f"{package}.{task.rival}").open_peer)
