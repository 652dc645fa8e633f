"""The records that a run was begun with, and whether a data file still is theirs when it is resumed.

A record's number is its place in the file when the run began; the order of the batches follows from the
numbers. A resumed run knows its records by the hash of each: a bad one may be mended or gone, no other.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tinyllava_edge.atomic_files import write_bytes
from tinyllava_edge.errors import DataError, RecordError, UsageError
from tinyllava_edge.record_check import BadRecord

from .data import Conversation, canonical, parse_record, record_id, sha256_of
from .left_out import LeftOut, mend
from .records import Data
from .run import LEFT_OUT_FILE, RECORDS_FILE

Look = Callable[[Conversation], object]  # raises RecordError where it is bad


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
    mend(work / LEFT_OUT_FILE)
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
