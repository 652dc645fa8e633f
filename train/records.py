"""The records of a run: what the data file holds, which of it the run numbers, and which are left out.

A record's number is its place in the file when the run began; the order of the batches follows from the
numbers. A resumed run knows its records by the hash of each: a bad one may be mended or gone, no other.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import write_bytes
from tinyllava_edge.console import note
from tinyllava_edge.errors import DataError, RecordError, UsageError
from tinyllava_edge.record_check import MISSING, BadRecord, count_kinds, say_kinds

from .data import MEDIA, Conversation, canonical, parse_record, read_list, record_id, sha256_of
from .options import PRETRAIN, FinetuneOptions
from .run import LEFT_OUT_FILE, RECORDS_FILE

Look = Callable[[Conversation], object]  # raises RecordError where it is bad
_LISTED = 3  # bad records that an error shows; `--check` lists all
_SAID = 10  # bad records that are said when they are met; the end counts them all


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
            return RecordError(MEDIA, "no picture: --template pretrain learns captions.")
        if picture is None:
            return found
        if picture not in there:
            there[picture] = picture.is_file()
        return found if there[picture] else RecordError(MISSING, f"{picture}: no such file.")

    records = read_list(options.data)
    conversations = [conversation(record, index) for index, record in enumerate(records)]
    return Data(file=options.data, images=options.images, records=records, conversations=conversations)


def data_sha256(hashes: Iterable[str], left_out: Iterable[str]) -> str:
    """One hash over those of the records, in their order, but for those left out."""
    without = set(left_out)
    return sha256_of("\n".join(sha256 for sha256 in hashes if sha256 not in without))


class LeftOut:
    """Records that a run does without; they are written down, and hold for the rest of it.

    Args:
        path: JSON lines, one a bad record that was met, in an earlier part of the run too; None keeps none.
        skip: leave out what is met; False ends the run there.

    Attributes:
        met: by number, the kind of what ended the run or was left out.
        before: numbers of what was left out before the first step, which is not in the order of batches.
    """

    def __init__(self, path: Path | None = None, *, skip: bool = False) -> None:
        self._path, self._skip = path, skip
        self._lines: dict[int, dict[str, Any]] = {}
        self.met: dict[int, str] = {}
        self.before: set[int] = set()
        if path is not None and path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]  # a kill may have cut the last line
            if whole != content:
                write_bytes(path, whole)
            try:
                for line in whole.splitlines():
                    self._keep(json.loads(line))
            except (ValueError, LookupError, TypeError):
                raise UsageError(f"{path}: damaged. Begin anew: --force without --resume.") from None

    def __contains__(self, number: int) -> bool:
        return number in self._lines

    @property
    def hashes(self) -> set[str]:
        """Of the records that are left out."""
        return {line["sha256"] for line in self._lines.values()}

    @property
    def records(self) -> list[dict[str, str]]:
        """Name, kind and hash of each record that is left out, for the sidecar."""
        lines = (self._lines[number] for number in sorted(self._lines))
        return [{key: line[key] for key in ("id", "kind", "sha256")} for line in lines]

    @property
    def counts(self) -> dict[str, int]:
        """How many are left out of each kind."""
        return dict(Counter(line["kind"] for line in self._lines.values()).most_common())

    def add(self, number: int, id_: str, kind: str, sha256: str, why: str = "met") -> None:
        """Write a bad record down; `why` is `before` the run, `met` in it, or what `stopped` it."""
        line = {"number": number, "id": id_, "kind": kind, "sha256": sha256, "why": why}
        self._keep(line)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def meet(self, number: int, conversation: Conversation, fault: RecordError) -> None:
        """Leave a record out.

        Raises:
            RecordError: bad records are not to be left out; the message names the ways on.
        """
        why = "met" if self._skip else "stopped"
        self.add(number, conversation.id, fault.kind, conversation.sha256, why)
        if not self._skip:
            raise RecordError(
                fault.kind,
                f"{conversation.where}: {fault} Mend it or drop it from the file, and repeat the command "
                "with --resume; or leave bad records out: --resume --skip-bad.",
            )
        if len(self._lines) <= _SAID:
            note(f"left out: {conversation.where}: {fault}")

    def _keep(self, line: dict[str, Any]) -> None:
        self.met[line["number"]] = line["kind"]
        if line["why"] != "stopped":
            self._lines[line["number"]] = line
        if line["why"] == "before":
            self.before.add(line["number"])


def refuse_bad(bad: Sequence[BadRecord], data: Data, left_out: set[str]) -> None:
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


def open_records(
    work: Path, data: Data, bad: Sequence[BadRecord], look: Look, *, skip: bool
) -> tuple[dict[int, Conversation | None], LeftOut]:
    """The conversations of a run by number, None where there is none any more, and what is left out.

    Args:
        work: the run's directory.
        data: the data file as it is now.
        bad: its records that are known to be bad.
        look: at a record that is no longer in the file.
        skip: leave bad records out.

    Raises:
        UsageError: the run was begun with other data; the message names the record.
        DataError: no record is left.
    """
    if not (work / RECORDS_FILE).exists():
        _begin(work, data, bad)
    numbered = (work / RECORDS_FILE).read_text(encoding="utf-8").splitlines()
    left_out = LeftOut(work / LEFT_OUT_FILE, skip=skip)

    def may_differ(number: int) -> bool:
        if number not in left_out.met:
            try:
                look(parse_record(json.loads(numbered[number]), number, data.file, data.images))
            except RecordError as fault:
                left_out.met[number] = fault.kind
        return number in left_out.met

    places = _match(numbered, data, may_differ)
    for number, place in enumerate(places):
        if place is None and number not in left_out:
            id_ = record_id(json.loads(numbered[number]), number)
            left_out.add(number, id_, left_out.met[number], sha256_of(numbered[number]))
    number_at = {place: number for number, place in enumerate(places)}
    for record in bad:
        if (number := number_at[record.index]) not in left_out:
            left_out.add(number, record.id, record.kind, data.sha256(record.index))
    conversations = {
        number: None if number in left_out or place is None else data.conversation(place)
        for number, place in enumerate(places)
        if number not in left_out.before
    }
    return conversations, left_out


def _begin(work: Path, data: Data, bad: Sequence[BadRecord]) -> None:
    """Write down what the run is begun with, last of all the records."""
    if any(work.glob("step-*")):
        raise UsageError(f"{work}: begun by an earlier version of this program. Begin anew with --force.")
    if len(bad) == len(data.records):
        raise DataError(f"{data.file}: no record is left, all {len(bad)} are bad. train --check lists them.")
    (work / LEFT_OUT_FILE).unlink(missing_ok=True)  # of a start that was killed
    left_out = LeftOut(work / LEFT_OUT_FILE)
    for record in bad:
        left_out.add(record.index, record.id, record.kind, data.sha256(record.index), "before")
    write_bytes(work / RECORDS_FILE, "".join(canonical(r) + "\n" for r in data.records).encode())


def _match(numbered: Sequence[str], data: Data, may_differ: Callable[[int], bool]) -> list[int | None]:
    """The place in the file of each numbered record; None where it is gone.

    Raises:
        UsageError: one is gone, changed or new that may not be.
    """
    known, found = [sha256_of(line) for line in numbered], data.hashes
    places: list[int | None] = []
    place = 0
    while (number := len(places)) < len(known):
        if place < len(found) and known[number] == found[place]:
            places.append(place)
            place += 1
            continue
        if not may_differ(number):
            id_ = record_id(json.loads(numbered[number]), number)
            raise _other_data(data, f"its record {number} (id {id_}) is gone or changed, and was not bad")
        following = number + 1  # the first that the record at hand may be, if those before it are gone
        if place < len(found):
            while following < len(known) and known[following] != found[place] and may_differ(following):
                following += 1
        if place == len(found) or (following < len(known) and known[following] == found[place]):
            places += [None] * (following - number)
        else:  # mended
            places.append(place)
            place += 1
    if place < len(found):
        new = f"record {place} (id {record_id(data.records[place], place)}) is new"
        raise _other_data(data, new)
    return places


def _other_data(data: Data, what: str) -> UsageError:
    return UsageError(
        f"{data.file}: other data than the unfinished run was begun with: {what}. Only bad records may be "
        "mended or dropped. Resume with the same data, or give --force without --resume to begin anew."
    )
