"""Runs what is not done yet, each step by the user's own command in a process of its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tinyllava_edge.append_jsonl import is_complete
from tinyllava_edge.atomic_files import write_json
from tinyllava_edge.benchmarks.evals.commands import Record, Said, run_command
from tinyllava_edge.benchmarks.evals.opened import LANGUAGE, VISION
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import DataError, TinyLlavaEdgeError

from .grid import EVAL, TRAIN, Options, words
from .steps import Cell, Training


class Runner:
    """A folder of steps: `KEY.json` is there once a step is done, beside its checkpoint or its answers.

    Args:
        folder: of the steps.
        judge: options of `eval`.
        said: called with what a step says of its progress.
    """

    def __init__(self, folder: Path, judge: Options, said: Said = lambda line: None) -> None:
        self._folder, self._judge, self._said = folder, judge, said
        self._failed: dict[str, str] = {}
        self._done: set[str] = set()

    def score(self, cell: Cell) -> Record:
        """What `eval` says of a cell, after the trainings that are missing.

        Questions that failed are asked again, once by each runner.

        Raises:
            DataError: a step failed, in this run; the message is its own.
        """
        bundle = self._folder / f"{cell.key}.bundle"
        found = self._once(cell.key, lambda: self._judged(cell, bundle), needs=self.answers(cell))
        if not found["failed"]:
            shutil.rmtree(bundle, ignore_errors=True)
        return found

    def scored(self, cell: Cell) -> Record:
        """The same where it is known; else empty."""
        return self.known(cell.key) if self.answers(cell).exists() else {}

    def known(self, key: str) -> Record:
        """The record of a step that is done; empty of any other."""
        path = self._folder / f"{key}.json"
        return dict(json.loads(path.read_bytes())) if path.exists() else {}

    def answers(self, cell: Cell) -> Path:
        """The file of a cell's answers."""
        return self._folder / f"{cell.key}.jsonl"

    def _once(self, key: str, work: Callable[[], Record], *, needs: Path) -> Record:
        found = self.known(key)
        if found and needs.exists() and (key in self._done or not found.get("failed")):
            return found
        if key not in self._failed:
            try:
                found = work()
                write_json(self._folder / f"{key}.json", found)
                self._done.add(key)
                return found
            except (TinyLlavaEdgeError, OSError) as error:
                self._failed[key] = " ".join(str(error).split())
        raise DataError(self._failed[key])

    def checkpoint(self, training: Training) -> Path:
        """The checkpoint of a training, which goes on where a killed one ended."""
        out = self._folder / training.key

        def work() -> Record:
            start = ["--from", str(self.checkpoint(training.before[-1]))] if training.before else []
            line = ["train", "-o", str(out), "--resume", *words(TRAIN, training.options), *start]
            try:
                return self._run(training.key, line)
            except DataError as error:
                if "the unfinished run has" not in str(error):
                    raise
                raise DataError(f"{error} Or remove steps/{training.key}.work.") from None

        self._once(training.key, work, needs=out)
        return out

    def _judged(self, cell: Cell, bundle: Path) -> Record:
        """Export, where that is not done, and eval; complete answers are scored, not asked for again."""
        answers = self.answers(cell)
        judge = {"vision": VISION, "language": LANGUAGE, **self._judge}
        if not bundle.is_dir():
            same = ("vision", "language", "sources", "allow_pickle")
            exported = words(EVAL, {name: judge[name] for name in same if name in judge})
            checkpoint = self.checkpoint(cell.training)
            self._run(cell.key, ["export", str(checkpoint), "-o", str(bundle), *exported])
        kept = ["--merge"] if is_complete(answers) else ["--resume", "--answers"]
        score = self._run(cell.key, ["eval", str(bundle), *kept, str(answers), *words(EVAL, judge)])
        manifest = Bundle.open(bundle).manifest
        parameters = {name: part.parameters for name, part in manifest.parts.items()}
        return {**score, "picture_tokens": manifest.vision.num_tokens, "parameters": parameters}

    def _run(self, key: str, line: list[str]) -> Record:
        with (self._folder / f"{key}.log").open("a", buffering=1, encoding="utf-8") as log:

            def heard(said: str) -> None:
                log.write(f"{said}\n")
                self._said(f"{line[0]}: {said}")

            return run_command(line, heard)
