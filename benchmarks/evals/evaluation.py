"""One evaluation: what is asked of which variants, how far it is, and what came of it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinyllava_edge import __version__
from tinyllava_edge.append_jsonl import AppendedLines, append_lines, kept_is_said
from tinyllava_edge.benchmarks.bench.worker import Cell
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.console import note, progress
from tinyllava_edge.errors import DataError, UsageError
from tinyllava_edge.record_check import OTHER, BadRecord, count_kinds, read_report, say_kinds

from .answers import (
    Answer,
    Answers,
    Way,
    answer_files,
    answer_line,
    answers_mark,
    ask_missing,
    failures,
    known_answers,
)
from .check import Looked
from .public_sets import read_public_set
from .question import Question, Record
from .questions import check_pictures, read_records
from .rules import RULES
from .scores import summarize


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked: the records of a file, and the public set that they are of.

    Attributes:
        file: of the questions.
        records: in its order; empty where --limit leaves one out.
        benchmark: name of the public set; None for one's own questions.
        num_all: questions that the whole set has.
    """

    file: Path
    records: Sequence[Record]
    benchmark: str | None = None
    num_all: int = 0

    @property
    def questions(self) -> list[Question]:
        """Of all good records."""
        return [question for record in self.records if isinstance(record, tuple) for question in record]

    @property
    def bad(self) -> list[BadRecord]:
        """Records that hold no questions, and why."""
        return [
            BadRecord(file=str(self.file), index=index, id="?", kind=OTHER, reason=str(record))
            for index, record in enumerate(self.records)
            if isinstance(record, DataError)
        ]

    def looked(self, bundle: Bundle, max_tokens: int, context_length: int | None) -> Looked:
        """The check of it all."""
        return Looked(
            file=self.file,
            records=self.records,
            bundle=bundle,
            max_tokens=max_tokens,
            context_length=context_length,
        )


def read_own(questions: Path, images: Path, references: Sequence[Path], rule: str) -> Asked:
    """Read one's own questions; arguments and errors as `read_records`."""
    return Asked(file=questions, records=read_records(questions, images, references=references, rule=rule))


def read_benchmark(name: str, folder: Path, limit: int) -> Asked:
    """Read a public set; arguments and errors as `read_public_set`."""
    file, records, num_all = read_public_set(name, folder, limit)
    return Asked(file=file, records=records, benchmark=name, num_all=num_all)


@dataclass(kw_only=True)
class Evaluation:
    """All answers of all cells to all questions.

    Attributes:
        asked: the questions.
        bundle: what is asked.
        cells: by runtime and variants; the first is what the others are compared with.
        blind: show grey only; else both, of one's own questions.
        max_tokens: of an answer.
        context_length: positions that were asked for, or None.
        skip_bad: leave what fails out of the score.
        answers: of every cell, seeing or blind or both.
    """

    asked: Asked
    bundle: Bundle
    cells: Sequence[Cell]
    blind: bool
    max_tokens: int
    context_length: int | None
    skip_bad: bool
    answers: Answers = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Name what is asked of whom.

        Raises:
            DataError: none of the pictures is there; or records hold no questions, and are not to be skipped:
                all of them are said before.
        """
        bad = self.asked.bad
        if bad and not self.skip_bad:
            _say(bad)
            raise DataError(
                f"{self.asked.file}: {len(bad)} of {len(self.asked.records)} records hold no question, "
                "as said above. Mend them, or give --skip-bad."
            )
        self._questions = self.asked.questions
        check_pictures(self._questions, some=True)
        is_one = self.blind or self.asked.benchmark or not self.is_scored
        blind = (self.blind,) if is_one else (False, True)
        self.answers = {(cell.name, way): {} for cell in self.cells for way in blind}

    @property
    def is_scored(self) -> bool:
        """Whether anything is expected of any question."""
        return any(question.answers for question in self._questions)

    def ask(self, path: Path | None, *, resume: bool, force: bool) -> None:
        """Ask what is not answered yet, and write it down as it comes.

        Args:
            path: of the answers, or None.
            resume: go on with what an unfinished run left there.
            force: replace answers that are there.

        Raises:
            OutputBusyError, OutputExistsError, ResumeError, DiskFullError: as `append_lines`.
            BackendError: a runtime failed; what was answered is kept.
            UsageError: nothing could be scored, and no answers are to be written.
        """
        if path is None and not self.is_scored:
            raise UsageError(
                f"{self.asked.file}: holds no answers to score by. Give --answers FILE to write what the "
                "model says, or --references FILE."
            )
        if read_report(self.asked.looked(self.bundle, self.max_tokens, self.context_length).key()) is None:
            note("These questions were not checked: --check opens all pictures first, and lists what is bad.")
        if path is None:
            return self._ask(None)
        first, *others = answer_files(path, self.answers).values()
        with append_lines(
            first, self._depends_on(), resume=resume, force=force, mark=answers_mark, others=others
        ) as file:
            self.answers = known_answers(file, self._questions, self.answers)
            with kept_is_said(file):
                self._ask(file)
            file.settle(*(self._lines(way) for way in self.answers))
            if self.skip_bad or not self._failed:
                file.finish()

    def _ask(self, file: AppendedLines | None) -> None:
        known = sum(map(len, self.answers.values()))
        with progress() as bar:
            task = bar.add_task("eval", total=len(self._questions) * len(self.answers), completed=known)

            def on_answer(way: Way, position: int, answer: Answer) -> None:
                bar.advance(task)
                if file is not None:
                    file.append(self._line(way, position, answer))

            for cell in self.cells:
                ask_missing(cell, self._questions, self.answers, self.max_tokens, on_answer)

    def _depends_on(self) -> dict[str, Any]:
        return {
            "command": "eval",
            "version": __version__,
            "bundle": self.bundle.manifest_sha256,
            "runtimes": [cell.runtime for cell in self.cells],
            "answers": [f"{name}{' blind' if blind else ''}" for name, blind in self.answers],
            "benchmark": self.asked.benchmark,
            "rule": next((question.rule for question in self._questions), None),
            "max_tokens": self.max_tokens,
        }

    def _lines(self, way: Way) -> Iterator[dict[str, Any]]:
        return (
            self._line(way, position, self.answers[way][position]) for position in range(len(self._questions))
        )

    def _line(self, way: Way, position: int, answer: Answer) -> dict[str, Any]:
        return answer_line(way, position, self._questions[position], answer)

    @property
    def _failed(self) -> list[BadRecord]:
        return failures(self.asked.file, self._questions, self.answers)

    @property
    def kept(self) -> list[Question]:
        """Questions that the score is of."""
        return [self._questions[position] for position in self._positions()]

    def _positions(self) -> list[int]:
        answers = self.answers.values()
        return [
            position
            for position in range(len(self._questions))
            if not self.skip_bad or all(its[position].fault is None for its in answers)
        ]

    def _scored(self) -> list[int]:
        return [position for position in self._positions() if self._questions[position].answers]

    def _texts(self, cell: Cell, blind: bool) -> list[str | None]:
        its = self.answers[cell.name, blind]
        return [its[p].text if its[p].fault is None else None for p in self._scored()]

    def results(self) -> list[dict[str, Any]]:
        """Of each cell what it is and its figures: the public set's own, or `scores.summarize`.

        Raises:
            DataError: nothing is left to score.
        """
        if not self.kept:
            raise DataError(f"{self.asked.file}: every question is left out: {say_kinds(self._counts())}.")
        return [
            {
                "name": cell.name,
                "runtime": cell.runtime,
                "vision": cell.options.vision,
                "language": cell.options.language,
                **self._figures(cell),
            }
            for cell in self.cells
        ]

    def _figures(self, cell: Cell) -> dict[str, Any]:
        asked, scored = len(self._positions()), [self._questions[p] for p in self._scored()]
        of_all = {"asked": asked, "of": self.asked.num_all, "subset": asked < self.asked.num_all}
        unscored = {"unscored": asked - len(scored)}
        amount = {**(of_all if self.asked.benchmark else {}), **unscored}
        if not scored:
            return {"rule": None, "score": None, "accuracy": None, **amount}
        rule, texts = RULES[scored[0].rule], self._texts(cell, self.blind)
        if self.asked.benchmark:
            named = {"rule": rule.name, "right_is": rule.says}
            return {**named, "questions": len(scored), **rule.figures(scored, texts), **amount}
        first = None if cell is self.cells[0] else self._texts(self.cells[0], self.blind)
        return {**summarize(scored, texts, self._texts(cell, True), first), **amount}

    def _counts(self) -> dict[str, int]:
        return count_kinds([*self.asked.bad, *self._failed])

    def faults(self) -> dict[str, Any]:
        """What failed and counts as wrong, and what was left out, as it stands in a result."""
        found = [asdict(record) for record in (*self.asked.bad, *self._failed)]
        failed, skipped = ([], found) if self.skip_bad else (found, [])
        return {"failed": failed, "skipped": skipped, "fault_counts": self._counts()}

    def name_failures(self) -> None:
        """Say on stderr which questions failed, or were left out, and why."""
        found = [*self.asked.bad, *self._failed]
        if found:
            _say(found)
            what = "left out" if self.skip_bad else "failed, which counts as wrong"
            note(f"{len(found)} {what}: {say_kinds(self._counts())}")
        if self._failed and not self.skip_bad:
            note("Mend them, and --resume asks those again of an answers file; --skip-bad leaves them out.")


def _say(found: Sequence[BadRecord]) -> None:
    for record in found:
        reason = " ".join(record.reason.split())
        note(f"{record.file}: record {record.index} (id {record.id}): {record.kind}: {reason}", is_fault=True)
