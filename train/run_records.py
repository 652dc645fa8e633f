"""The records that a run was begun with, and whether a data file still is theirs when it is resumed.

A record's number is its place in the files when the run began; the order of the batches follows from the
numbers. A resumed run knows its records by the hash of each: a bad one may be mended or gone, no other.
"""

import filecmp
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tinyllava_edge.console import note
from tinyllava_edge.errors import DataError, RecordError, UsageError
from tinyllava_edge.record_check import BadRecord

from .conversations import BadRow, Conversation
from .left_out import LeftOut, mend
from .records import Data
from .rows import Rows
from .run import LEFT_OUT_FILE, NOW_FILE, RECORDS_FILE

Look = Callable[[Conversation | BadRow], object]  # raises RecordError where it is bad


class Numbered(Mapping[int, Conversation | BadRow | None]):
    """The records of a run by number, each read when it is asked for; None where there is none any more.

    Attributes:
        data: what they are read from.
        counts: records of each file when the run began.
    """

    def __init__(self, data: Data, places: Sequence[int | None], left_out: LeftOut) -> None:
        self.data, self._places, self._left_out = data, places, left_out
        self.counts = data.counts
        self._numbers = [number for number in range(len(places)) if number not in left_out.before]

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __getitem__(self, number: int) -> Conversation | BadRow | None:
        place = self._places[number]
        return None if place is None or number in self._left_out else self.data[place]


def open_records(
    work: Path, data: Data, bad: Mapping[int, BadRecord], look: Look, *, skip: bool, writes: bool = True
) -> tuple[Numbered, LeftOut]:
    """The conversations of a run by number, None where there is none any more, and what is left out.

    They are read from the run's own copy of the data: the file may be edited meanwhile.

    Args:
        work: the run's directory.
        data: the data files as they are now.
        bad: their records that are known to be bad, by number.
        look: at a record that is no longer in the file.
        skip: leave bad records out.
        writes: False where another process, the first of several, has opened them already.

    Raises:
        UsageError: the run was begun with other data; the message names the record.
        DataError: no record is left.
    """
    copies = _copies(work / RECORDS_FILE, data)
    if is_new := not copies[0].exists():
        _begin(work, data, bad)
    begun = data.reading(_copied(data, copies) if is_new else list(map(Rows, copies)))
    counts = begun.counts
    if writes:
        mend(work / LEFT_OUT_FILE)
    left_out = LeftOut(work / LEFT_OUT_FILE, skip=skip, writes=writes)
    places: Sequence[int | None] = range(len(begun))
    number_at: Mapping[int | None, int] | None = None
    same = (
        filecmp.cmp(copy, file.path, shallow=False) for copy, file in zip(copies, data.files, strict=True)
    )
    if not is_new and not all(same):
        if writes:
            note(f"{data.name}: changed since the run was begun; its records are compared")
        places = _match(begun, data, _may_differ(begun, left_out, look))
        for number, place in enumerate(places):
            if place is None and number not in left_out:
                gone = begun[number]
                left_out.add(number, gone.id, left_out.met[number], gone.sha256)
        number_at = {place: number for number, place in enumerate(places)}
        copies = _copies(work / NOW_FILE, data)
        begun = data.reading(_copied(data, copies) if writes else list(map(Rows, copies)))
    for place, record in bad.items():
        number = place if number_at is None else number_at[place]
        if number not in left_out:
            left_out.add(number, record.id, record.kind, data[place].sha256)
    records = Numbered(begun, places, left_out)
    records.counts = counts
    return records, left_out


def _copies(first: Path, data: Data) -> list[Path]:
    """Where the files' copies are."""
    return [first, *(first.with_suffix(f".{at}.copy") for at in range(1, len(data.files)))]


def _copied(data: Data, copies: Sequence[Path]) -> list[Rows]:
    """Copy the files; the first comes last, as all are there when it is."""
    pairs = reversed(list(zip(data.rows, copies, strict=True)))
    return [rows.copied_to(copy) for rows, copy in pairs][::-1]


def _begin(work: Path, data: Data, bad: Mapping[int, BadRecord]) -> None:
    """Write down what the run is begun without; its records come last."""
    if any(work.glob("step-*")):
        raise UsageError(f"{work}: begun by an earlier version of this program. Begin anew with --force.")
    if len(bad) == len(data):
        raise DataError(f"{data.name}: no record is left, all {len(bad)} are bad. train --check lists them.")
    (work / LEFT_OUT_FILE).unlink(missing_ok=True)  # of a start that was killed
    left_out = LeftOut(work / LEFT_OUT_FILE)
    for number, record in bad.items():
        left_out.add(number, record.id, record.kind, data[number].sha256, "before")


def _may_differ(begun: Data, left_out: LeftOut, look: Look) -> Callable[[int], bool]:
    def may_differ(number: int) -> bool:
        if number not in left_out.met:
            try:
                look(begun[number])
            except RecordError as fault:
                left_out.met[number] = fault.kind
        return number in left_out.met

    return may_differ


def _match(begun: Data, data: Data, may_differ: Callable[[int], bool]) -> list[int | None]:
    """The place in the file of each record that the run was begun with; None where it is gone.

    Raises:
        UsageError: one is gone, changed or new that may not be.
    """
    known, found = begun.hashes, data.hashes
    places: list[int | None] = []
    place = 0
    while (number := len(places)) < len(known):
        if place < len(found) and known[number] == found[place]:
            places.append(place)
            place += 1
            continue
        if not may_differ(number):
            what = f"its record {number} (id {begun[number].id}) is gone or changed, and was not bad"
            raise _other_data(data, what)
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
        raise _other_data(data, f"record {place} (id {data[place].id}) is new")
    return places


def _other_data(data: Data, what: str) -> UsageError:
    return UsageError(
        f"{data.name}: other data than the unfinished run was begun with: {what}. Only bad records may be "
        "mended or dropped. Resume with the same data, or give --force without --resume to begin anew."
    )
