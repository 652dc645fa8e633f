"""A rival that computes nothing: it says what its settings say, and prints what libraries print."""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyllava_edge.benchmarks.bench.peers.lines import Marks, Prompt, Sample, Task, peak_of


def open_peer(task: Task) -> "Scripted":
    return Scripted(task)


class Scripted:
    def __init__(self, task: Task) -> None:
        print("a library says something on standard output", flush=True)  # noqa: T201
        if task.settings.get("fails") == "raises":
            raise ValueError("no such weights")
        if task.settings.get("fails") == "dies":
            os.write(2, b"terminate called\n")
            os._exit(7)
        self._task = task

    def facts(self) -> dict[str, Any]:
        facts = {"versions": {"scripted": "1.0"}, "library": "none", "cannot_match": ["anything at all"]}
        return {**facts, **self._task.settings.get("facts", {})}

    def answer(self, prompt: Prompt) -> Sample:
        marks = Marks()
        with marks.stage("vision"):
            assert os.path.exists(self._task.picture)
        for _ in range(self._task.num_tokens):
            time.sleep(0.0002)  # a time of nothing has no ratio
            marks.mark_token()
        marks.rest_is_prefill()
        return marks.sample([7] * self._task.num_tokens, prompt_tokens=len(prompt.ids))

    def second(self) -> Sample | None:
        return self.answer(self._task.second) if self._task.settings.get("remembers") else None

    def forced(self, prompt: Prompt, ids: Sequence[int]) -> Any:
        if not (size := self._task.settings.get("vocab_size")):
            return None
        return 9.0 * np.eye(size, dtype=np.float32)[list(ids), : self._task.settings.get("width")]

    def peak_bytes(self) -> int:
        return peak_of()

    def close(self) -> None:
        pass
