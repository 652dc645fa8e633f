"""The data files as they are now: their records, and what is bad about them at first sight."""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import DataError, RecordError
from tinyllava_edge.record_check import MISSING, BadRecord, count_kinds, say_kinds

from .conversations import BadRow, Conversation, parse_record, sha256_of
from .mix import DataFile
from .options import PRETRAIN, FinetuneOptions
from .rows import Rows, parse_row

NO_PICTURE, SEVERAL = "no picture", "several pictures"
_LISTED = 3  # bad records that an error shows; `--check` lists all
_FIRST_LOOK = 10_000  # records of a file that a start looks at, in half a second


class Data(Sequence[Conversation | BadRow]):
    """The records of the data files, one file after the other, each read when it is asked for.

    A record's number is its place among all; its index is that in its file.

    Args:
        files: where they are from, for messages, and where their pictures are.
        rows: their texts, of each file.
        template: of the training, by name.
    """

    def __init__(self, files: Sequence[DataFile], rows: Sequence[Rows], template: str | None) -> None:
        self.files, self.rows, self._template = tuple(files), tuple(rows), template
        self._starts = [0, *accumulate(self.counts)]

    @property
    def counts(self) -> list[int]:
        """Records of each file."""
        return [len(rows) for rows in self.rows]

    @property
    def name(self) -> str:
        """The files, for messages."""
        return ", ".join(str(file.path) for file in self.files)

    @property
    def parts(self) -> list[tuple[int, "Data"]]:
        """The number of each file's first record, and its own records."""
        each = zip(self._starts[:-1], self.files, self.rows, strict=True)
        return [(start, Data([file], [rows], self._template)) for start, file, rows in each]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> Conversation | BadRow:  # type: ignore[override]
        at = bisect_right(self._starts, number) - 1
        index = number - self._starts[at]
        return self._parse(self.files[at], index, self.rows[at][index])

    def __iter__(self) -> Iterator[Conversation | BadRow]:
        for file, rows in zip(self.files, self.rows, strict=True):
            for index, row in enumerate(rows):
                yield self._parse(file, index, row)

    def _parse(self, file: DataFile, index: int, row: bytes) -> Conversation | BadRow:
        record: Any = row.decode(errors="backslashreplace")
        try:
            record = parse_row(row)
            found = parse_record(record, index, file.path, file.images)
            if self._template == PRETRAIN and len(found.pictures) != 1:
                kind = SEVERAL if found.pictures else NO_PICTURE
                raise RecordError(kind, f"{kind}: --template pretrain learns the caption of one.")
        except RecordError as fault:
            return BadRow(file=file.path, index=index, record=record, fault=fault)
        return found

    @cached_property
    def bad(self) -> dict[int, BadRecord]:
        """What is seen to be bad of each file's first records without opening a picture or making tokens."""
        there: dict[Path, bool] = {}

        def fault(found: Conversation | BadRow) -> RecordError | None:
            if isinstance(found, BadRow):
                return found.fault
            for picture in found.pictures:
                if picture not in there:
                    there[picture] = os.path.isfile(picture)  # also false of what is no name
                if not there[picture]:
                    return RecordError(MISSING, f"{picture}: no such file.")
            return None

        return {
            start + at.index: BadRecord(
                file=str(at.file), index=at.index, id=at.id, kind=bad.kind, reason=str(bad)
            )
            for start, part in self.parts
            for at in islice(part, _FIRST_LOOK)
            if (bad := fault(at)) is not None
        }

    def reading(self, rows: Sequence[Rows]) -> "Data":
        """The same data from other files."""
        return Data(self.files, rows, self._template)

    @property
    def hashes(self) -> list[str]:
        """Of all records."""
        return [found.sha256 for found in self]


def read_data(options: FinetuneOptions, *, validation: bool = False) -> Data:
    """Find the records of the data files, or of the validation set.

    Raises:
        DataError: a file cannot be read, or is neither a list nor a record a line.
    """
    files = options.files
    if validation:
        path = options.eval_data
        assert path is not None
        files = (DataFile(path=path, images=options.eval_images or path.parent),)
    return Data(files, [Rows(file.path) for file in files], options.template)


def data_sha256(hashes: Iterable[str], left_out: Iterable[str]) -> str:
    """One hash over those of the records, in their order, but for those left out."""
    without = set(left_out)
    return sha256_of("\n".join(sha256 for sha256 in hashes if sha256 not in without))


def is_trained_on(sidecar: Mapping[str, Any], data: Data) -> bool:
    """Whether a finished run was of these data, what it left out aside."""
    without = [record["sha256"] for record in sidecar.get("left_out", ())]
    return bool(sidecar) and sidecar.get("data_sha256") == data_sha256(data.hashes, without)


def refuse_bad(bad: Mapping[int, BadRecord], data: Data, left_out: AbstractSet[str]) -> None:
    """Refuse data with bad records, by number, but for those that the run leaves out already.

    Raises:
        DataError: counts them and shows the first.
    """
    first = bad == data.bad and max(data.counts) > _FIRST_LOOK
    found = [r for number, r in bad.items() if not left_out or data[number].sha256 not in left_out]
    if not found:
        return
    several = len(data.files) > 1
    of = f"{len(data)} records"
    if first:
        of = f"the first {_FIRST_LOOK} records{' of each' if several else ''}"
    shown = "; ".join(
        f"{f'{r.file}: ' if several else ''}record {r.index} (id {r.id}): {r.reason.rstrip('.')}"
        for r in found[:_LISTED]
    )
    raise DataError(
        f"{data.name}: {len(found)} bad of {of} ({say_kinds(count_kinds(found))}): {shown}"
        f"{'; ...' if found[_LISTED:] else ''}. train --check lists them all. Mend them, or leave them out "
        "with --skip-bad."
    )
