"""A data file as it is now: its records, and what is bad about them at first sight."""

import os
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import DataError, RecordError
from tinyllava_edge.record_check import MISSING, BadRecord, count_kinds, say_kinds

from .data import Conversation, canonical, parse_record, read_list, record_id, sha256_of
from .options import PRETRAIN, FinetuneOptions

NO_PICTURE = "no picture"
_LISTED = 3  # bad records that an error shows; `--check` lists all


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data file as it is now; a conversation of each record, or why there is none."""

    file: Path
    images: Path
    records: list[Any]
    conversations: list[Conversation | RecordError]

    def bad(self) -> list[BadRecord]:
        """What is seen to be bad without opening a picture or making tokens."""
        return [
            BadRecord(
                file=str(self.file),
                index=index,
                id=record_id(self.records[index], index),
                kind=fault.kind,
                reason=str(fault),
            )
            for index, fault in enumerate(self.conversations)
            if isinstance(fault, RecordError)
        ]

    def sha256(self, index: int) -> str:
        """Hash of a record."""
        found = self.conversations[index]
        return sha256_of(canonical(self.records[index])) if isinstance(found, RecordError) else found.sha256

    def conversation(self, index: int) -> Conversation | None:
        """A record's conversation, None where it is bad."""
        found = self.conversations[index]
        return None if isinstance(found, RecordError) else found

    @property
    def hashes(self) -> list[str]:
        """Of all records."""
        return [self.sha256(index) for index in range(len(self.records))]


def read_data(options: FinetuneOptions) -> Data:
    """Read the data file, and look whether its pictures are there.

    Raises:
        DataError: the file cannot be read, or is no list.
    """
    there: dict[Path, bool] = {}

    def conversation(record: Any, index: int) -> Conversation | RecordError:
        try:
            found = parse_record(record, index, options.data, options.images)
        except RecordError as fault:
            return fault
        picture = found.picture
        if picture is None and options.template == PRETRAIN:
            return RecordError(NO_PICTURE, "no picture: --template pretrain learns captions.")
        if picture is None:
            return found
        if picture not in there:
            there[picture] = os.path.isfile(picture)  # also false of what is no name
        return found if there[picture] else RecordError(MISSING, f"{picture}: no such file.")

    records = read_list(options.data)
    conversations = [conversation(record, index) for index, record in enumerate(records)]
    return Data(file=options.data, images=options.images, records=records, conversations=conversations)


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
    bad = [record for record in bad if data.sha256(record.index) not in left_out]
    if not bad:
        return
    shown = "; ".join(f"record {r.index} (id {r.id}): {r.reason.rstrip('.')}" for r in bad[:_LISTED])
    raise DataError(
        f"{data.file}: {len(bad)} bad of {len(data.records)} records ({say_kinds(count_kinds(bad))}): {shown}"
        f"{'; ...' if bad[_LISTED:] else ''}. train --check lists them all. Mend them, or leave them out "
        "with --skip-bad."
    )
