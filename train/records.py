"""A data file as it is now: its records, and what is bad about them at first sight."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import DataError, RecordError
from tinyllava_edge.record_check import MISSING, BadRecord, count_kinds, say_kinds

from .conversations import BadRow, Conversation, parse_record, sha256_of
from .options import PRETRAIN, FinetuneOptions
from .rows import Rows, parse_row

NO_PICTURE, SEVERAL = "no picture", "several pictures"
_LISTED = 3  # bad records that an error shows; `--check` lists all
_FIRST_LOOK = 10_000  # records that a start looks at, in half a second


class Data(Sequence[Conversation | BadRow]):
    """The records of a data file, each read when it is asked for.

    Args:
        file: where they are from, for messages.
        images: folder of their pictures.
        rows: their texts.
        template: of the training, by name.
    """

    def __init__(self, file: Path, images: Path, rows: Rows, template: str | None) -> None:
        self.file, self.images, self.rows = file, images, rows
        self._template = template

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Conversation | BadRow:  # type: ignore[override]
        return self._parse(index, self.rows[index])

    def __iter__(self) -> Iterator[Conversation | BadRow]:
        return (self._parse(index, row) for index, row in enumerate(self.rows))

    def _parse(self, index: int, row: bytes) -> Conversation | BadRow:
        record: Any = row.decode(errors="backslashreplace")
        try:
            record = parse_row(row)
            found = parse_record(record, index, self.file, self.images)
            if self._template == PRETRAIN and len(found.pictures) != 1:
                kind = SEVERAL if found.pictures else NO_PICTURE
                raise RecordError(kind, f"{kind}: --template pretrain learns the caption of one.")
        except RecordError as fault:
            return BadRow(file=self.file, index=index, record=record, fault=fault)
        return found

    @cached_property
    def bad(self) -> list[BadRecord]:
        """What is seen to be bad of the first records without opening a picture or making tokens."""
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

        looked = ((found, fault(found)) for found in islice(self, _FIRST_LOOK))
        return [
            BadRecord(file=str(self.file), index=at.index, id=at.id, kind=bad.kind, reason=str(bad))
            for at, bad in looked
            if bad is not None
        ]

    def reading(self, rows: Rows) -> "Data":
        """The same data from another file."""
        return Data(self.file, self.images, rows, self._template)

    @property
    def hashes(self) -> list[str]:
        """Of all records."""
        return [found.sha256 for found in self]


def read_data(options: FinetuneOptions, *, validation: bool = False) -> Data:
    """Find the records of the data file, or of the validation set.

    Raises:
        DataError: the file cannot be read, or is neither a list nor a record a line.
    """
    file, images = options.data, options.images
    if validation:
        assert options.eval_data is not None
        file, images = options.eval_data, options.eval_images or options.eval_data.parent
    return Data(file, images, Rows(file), options.template)


def data_sha256(hashes: Iterable[str], left_out: Iterable[str]) -> str:
    """One hash over those of the records, in their order, but for those left out."""
    without = set(left_out)
    return sha256_of("\n".join(sha256 for sha256 in hashes if sha256 not in without))


def is_trained_on(sidecar: Mapping[str, Any], data: Data) -> bool:
    """Whether a finished run was of these data, what it left out aside."""
    without = [record["sha256"] for record in sidecar.get("left_out", ())]
    return bool(sidecar) and sidecar.get("data_sha256") == data_sha256(data.hashes, without)


def refuse_bad(bad: Sequence[BadRecord], data: Data, left_out: AbstractSet[str]) -> None:
    """Refuse data with bad records, but for those that the run leaves out already.

    Raises:
        DataError: counts them and shows the first.
    """
    first = bad == data.bad and len(data) > _FIRST_LOOK
    bad = [record for record in bad if not left_out or data[record.index].sha256 not in left_out]
    if not bad:
        return
    of = f"the first {_FIRST_LOOK} records" if first else f"{len(data)} records"
    shown = "; ".join(f"record {r.index} (id {r.id}): {r.reason.rstrip('.')}" for r in bad[:_LISTED])
    raise DataError(
        f"{data.file}: {len(bad)} bad of {of} ({say_kinds(count_kinds(bad))}): {shown}"
        f"{'; ...' if bad[_LISTED:] else ''}. train --check lists them all. Mend them, or leave them out "
        "with --skip-bad."
    )
