"""One evaluation: what is asked of which variants, how far it is, and what came of it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinyllava_edge import __version__
from tinyllava_edge.append_jsonl import AppendedLines, append_lines, kept_is_said
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.console import note, progress
from tinyllava_edge.errors import DataError, UsageError
from tinyllava_edge.record_check import BadRecord, count_kinds, read_report, say_kinds

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
from .asked import Asked
from .cell import Cell
from .question import Question
from .questions import check_pictures
from .rules import RULES
from .scores import compare, overall, summarize
from .shards import merged_answers

_SAID = 20  # bad records, of a file that is refused


@dataclass(kw_only=True)
class Evaluation:
    """All answers of all cells to all questions.

    Attributes:
        asked: the questions.
        bundle: what is asked.
        cells: by runtime and variants; the first is what the others are compared with.
        blind: show grey only, or never; None: both, of one's own questions.
        max_tokens: of an answer.
        context_length: positions that were asked for, or None.
        skip_bad: leave what fails out of the score.
        answers: of every cell, seeing or blind or both.
    """

    asked: Asked
    bundle: Bundle
    cells: Sequence[Cell]
    blind: bool | None
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
            _say(bad[:_SAID])
            more = "; --check lists all" if bad[_SAID:] else ""
            version = " Are all its files of one version?" if self.asked.benchmark else ""
            raise DataError(
                f"{self.asked.file}: {len(bad)} of {len(self.asked.records)} records hold no question, "
                f"as said above{more}.{version} Mend them, or give --skip-bad."
            )
        self._questions = self.asked.questions
        check_pictures(self._questions, some=True)
        is_one = self.blind is not None or self.asked.benchmark or not self.is_scored
        blind = (bool(self.blind),) if is_one else (False, True)
        self.answers = {(cell.name, way): {} for cell in self.cells for way in blind}

    @property
    def is_scored(self) -> bool:
        """Whether anything is expected of any question."""
        return any(question.answers for question in self._questions)

    def ask(
        self, path: Path | None, *, resume: bool = False, force: bool = False, merge: Sequence[Path] = ()
    ) -> None:
        """Ask what is not answered yet, and write it down as it comes.

        Args:
            path: of the answers, or None.
            resume: go on with what an unfinished run left there.
            force: replace answers that are there.
            merge: answers of earlier runs that have them all; then nothing is asked.

        Raises:
            OutputBusyError, OutputExistsError, ResumeError, DiskFullError: as `append_lines`.
            DataError: what is merged has not all answers, or others.
            BackendError: a runtime failed; what was answered is kept.
        """
        if merge:
            its = self._made_with()
            self.answers = merged_answers(
                merge, self._questions, self.answers, its["bundle"], self.max_tokens
            )
        elif read_report(self.asked.looked(self.bundle, self.max_tokens, self.context_length).key()) is None:
            note("These questions were not checked: --check opens all pictures first, and lists what is bad.")
        if path is None:
            return self._ask(None)
        first, *others = answer_files(path, self.answers).values()
        with append_lines(
            first, self._depends_on(), resume=resume, force=force, mark=answers_mark, others=others
        ) as file:
            if not merge:
                lines = ((file.path, line) for line in file.lines)
                self.answers, _ = known_answers(lines, self._questions, self.answers)
            with kept_is_said(file):
                self._ask(file)
            file.settle(*(self._lines(way) for way in self.answers))
            if self.skip_bad or not self._failed:
                file.finish()

    def check_is_kept(self, written: Path | None) -> None:
        """Refuse to ask what is neither scored nor written."""
        if written is None and not self.is_scored:
            raise UsageError(
                f"{self.asked.file}: holds no answers to score by. Give --answers FILE to write what the "
                "model says, or --references FILE."
            )

    def said(self) -> list[tuple[Question, str]]:
        """Every question with the first cell's answer, "" where it failed."""
        its = next(iter(self.answers.values()))
        return [(question, its[place].text) for place, question in enumerate(self._questions)]

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
            "shard": self.asked.shard,
            "rule": next((question.rule for question in self._questions), None),
            "max_tokens": self.max_tokens,
        }

    def _made_with(self) -> dict[str, Any]:
        return {"bundle": self.bundle.manifest_sha256, "max_tokens": self.max_tokens}

    def _lines(self, way: Way) -> Iterator[dict[str, Any]]:
        return (
            self._line(way, position, self.answers[way][position]) for position in range(len(self._questions))
        )

    def _line(self, way: Way, position: int, answer: Answer) -> dict[str, Any]:
        return answer_line(way, position, self._questions[position], answer, self._made_with())

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
        rule, is_blind = RULES[scored[0].rule], bool(self.blind)
        texts = self._texts(cell, is_blind)
        first = None if cell is self.cells[0] else self._texts(self.cells[0], is_blind)
        if not self.asked.benchmark:
            blind = self._texts(cell, True) if (cell.name, True) in self.answers else None
            return {**summarize(scored, texts, blind, first), **amount}
        named = {"rule": rule.name, "right_is": rule.says, **overall(scored, texts).to_json()}
        against = {} if first is None else {"against_first": compare(scored, first, texts)}
        return {**named, **rule.figures(scored, texts), **against, **amount}

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
