"""What an evaluation asks: the records of a file, or of a public set, or a shard of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.console import note
from tinyllava_edge.errors import DataError
from tinyllava_edge.record_check import OTHER, BadRecord

from .check import Looked
from .public_sets import PUBLIC_SETS, read_public_set
from .question import Question, Record
from .questions import read_records
from .scores import MAX_TOKENS
from .shards import shard_of


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked: the records of a file, and the public set that they are of.

    Attributes:
        file: of the questions.
        records: in its order; empty where --limit leaves one out.
        benchmark: name of the public set; None for one's own questions.
        num_all: questions that the whole set has.
        shard: I and N of --shard; None where all is asked.
    """

    file: Path
    records: Sequence[Record]
    benchmark: str | None = None
    num_all: int = 0
    shard: tuple[int, int] | None = None

    def part(self, shard: tuple[int, int] | None) -> "Asked":
        """One shard of it; arguments and errors as `shard_of`."""
        return self if shard is None else replace(self, records=shard_of(self.records, *shard), shard=shard)

    @property
    def max_tokens(self) -> int:
        """Most tokens of an answer, where nothing else is asked for."""
        return PUBLIC_SETS[self.benchmark].max_tokens if self.benchmark else MAX_TOKENS

    @property
    def as_published(self) -> bool | None:
        """Whether a public set has as many questions as scores were published of; None where not known."""
        known = PUBLIC_SETS[self.benchmark].num_questions if self.benchmark else 0
        return known == self.num_all if known else None

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
    """Read a public set; arguments and errors as `read_public_set`. Another version of it is said."""
    file, records, num_all = read_public_set(name, folder, limit)
    asked = Asked(file=file, records=records, benchmark=name, num_all=num_all)
    if asked.as_published is False:
        note(
            f"{file}: {num_all:,} questions, and published scores of {name} are of "
            f"{PUBLIC_SETS[name].num_questions:,}: another version, or a part, of the set."
        )
    return asked
