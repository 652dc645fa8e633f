"""A data file's records by their place in it: found once, without parsing, and read when they are asked for.

A JSON list or a record a line, told by the first character. 665,000 records are 10 MB of offsets.
"""

import json
import os
import shutil
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.checkpoint.files import once_each
from tinyllava_edge.errors import DataError, RecordError
from tinyllava_edge.full_disk import full_disk_named
from tinyllava_edge.user_files import open_user_file

MALFORMED = "malformed record"
_BLOCK = 1 << 18  # bytes: what is made of them stays in the processor's cache
_UTF8_MARK, _UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_QUOTE, _BACKSLASH, _COMMA, _LINE_FEED = b'"\\,\n'
_BLANK = 64  # a longer line is a record
_EXPECTED = "expected a JSON list of objects with id, image and conversations, as LLaVA has, or one a line"

Offsets = npt.NDArray[np.int64]


class Rows:
    """The texts of a file's records; the file must not change.

    Args:
        path: JSON list, or JSON lines; UTF-8, with a byte-order mark or none.

    Raises:
        DataError: the file is missing, empty or of another form, or its list does not end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_user_file(path, error=DataError) as file:
            self._state = _state(file)
            self._starts, self._ends = _find_rows(file, path)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> bytes:
        with self._opened() as file:
            return self._read(file, index)

    def __iter__(self) -> Iterator[bytes]:
        with self._opened() as file:
            for index in range(len(self)):
                yield self._read(file, index)

    def copied_to(self, path: Path) -> "Rows":
        """The same rows of a copy of the file.

        It is not synced: the system does that long before a run is worth going on with.

        Raises:
            DataError: the file has changed.
            DiskFullError: there is no room.
        """
        new = path.with_name(f"{path.name}.new")
        with full_disk_named(new, lambda: self._state[1]):
            shutil.copyfile(self.path, new)
            self._opened().close()
            os.replace(new, path)
        rows = Rows.__new__(Rows)
        rows.path, rows._starts, rows._ends = path, self._starts, self._ends
        with open_user_file(path, error=DataError) as file:
            rows._state = _state(file)
        return rows

    def _opened(self) -> BufferedReader:
        file = open_user_file(self.path, error=DataError)
        if _state(file) == self._state:
            return file
        file.close()
        raise DataError(f"{self.path}: it was changed while it is read. Repeat the command.")

    def _read(self, file: BufferedReader, index: int) -> bytes:
        file.seek(self._starts[index])
        return file.read(self._ends[index] - self._starts[index])


def parse_row(text: bytes) -> Any:
    """The value of a row, with a byte-order mark before it or none, as files put together have.

    Raises:
        RecordError: it is not JSON, or has a key twice.
    """
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=once_each)
    except UnicodeDecodeError as error:
        raise RecordError(MALFORMED, f"not UTF-8 ({error.reason} at its byte {error.start}).") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(MALFORMED, f"not valid JSON ({error}). Is the file whole?") from None


def _state(file: BufferedReader) -> tuple[int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def _find_rows(file: BufferedReader, path: Path) -> tuple[Offsets, Offsets]:
    """First byte of each record, and the one after its last."""
    head = file.read(3)
    if head[:2] in _UTF16_MARKS:
        raise DataError(f"{path}: not UTF-8 but UTF-16, its first bytes say. Save it as UTF-8.")
    start = 3 if head == _UTF8_MARK else 0
    file.seek(start)
    while (first := file.read(1)).isspace():
        start += 1
    if first == b"[":
        return _list_rows(file, path, start + 1)
    if first == b"{":
        starts, ends = _line_rows(file, start)
        file.seek(starts[0])
        try:
            parse_row(file.read(ends[0] - starts[0]))
        except RecordError as error:
            raise DataError(f"{path}: {_EXPECTED}; its first line is {error}") from None
        return starts, ends
    raise DataError(f"{path}: {_EXPECTED}; found {_beginning(file, start)}.")


def _beginning(file: BufferedReader, start: int) -> str:
    file.seek(start)
    head = file.read(20).decode(errors="replace")
    return repr(head) if head else "nothing"


def _line_rows(file: BufferedReader, start: int) -> tuple[Offsets, Offsets]:
    file.seek(start)
    found, base = [], start
    while block := file.read(_BLOCK):
        found.append(np.flatnonzero(np.frombuffer(block, np.uint8) == _LINE_FEED) + base)
        base += len(block)
    breaks = np.concatenate(found)
    starts, ends = np.append(start, breaks + 1), np.append(breaks, base)
    kept = np.ones(len(starts), bool)
    for index in np.flatnonzero(ends - starts < _BLANK):
        file.seek(starts[index])
        kept[index] = bool(file.read(ends[index] - starts[index]).strip())
    return starts[kept], ends[kept]


def _list_rows(file: BufferedReader, path: Path, start: int) -> tuple[Offsets, Offsets]:
    """The list's elements are what its own commas separate: those in no string and in no element."""
    file.seek(start)
    scan, found, base = _ListScan(), [], start
    while not scan.ended and (block := file.read(_BLOCK)):
        found.append(scan.commas(np.frombuffer(block, np.uint8)) + base)
        base += len(block)
    commas = np.concatenate([np.array([start - 1]), *found])
    starts, ends = commas[:-1] + 1, commas[1:]
    file.seek(commas[-1] + 1)
    if not scan.ended or any(block.strip() for block in iter(lambda: file.read(_BLOCK), b"")):
        raise DataError(f"{path}: not valid JSON: {_broken(file, starts, ends, scan.ended)}")
    file.seek(starts[-1])
    if len(starts) == 1 and not file.read(ends[0] - starts[0]).strip():
        raise DataError(f"{path}: {_EXPECTED}; the list is empty.")
    return starts, ends


def _broken(file: BufferedReader, starts: Offsets, ends: Offsets, ended: bool) -> str:
    """Where a list is broken whose end was not found, or is followed by something."""
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        file.seek(start)
        try:
            parse_row(file.read(end - start))
        except RecordError as error:
            return f"record {index}, at byte {start}: {error}"
    if ended:
        return (
            f"there is more after the list, which ends at byte {ends[-1]}. Give one list, or a record a line."
        )
    return f"the list does not end after record {len(starts) - 1}. Is the file whole?"


class _ListScan:
    """Finds the commas of a list, and its end, in one block after the other."""

    def __init__(self) -> None:
        self.ended = False
        self._depth, self._in_string, self._escaped = 1, False, False

    def commas(self, block: npt.NDArray[np.uint8]) -> Offsets:
        """Places in the block of the list's own commas, and of the bracket that ends it."""
        lower = block | 0x20  # [] as {}
        is_mark = self._quotes(block) | (lower == ord("{")) | (lower == ord("}")) | (block == _COMMA)
        marks = np.flatnonzero(is_mark)
        kinds = block[marks]
        quotes = kinds == _QUOTE
        in_string = np.logical_xor.accumulate(quotes) ^ self._in_string
        if len(marks):
            self._in_string = bool(in_string[-1])
        outside = ~(in_string | quotes)
        marks, kinds = marks[outside], kinds[outside]
        # The low three bits tell { and [ from } and ].
        depth = self._depth + np.cumsum(((kinds & 7) == 3).astype(np.int64) - ((kinds & 7) == 5))
        if len(depth):
            self._depth = int(depth[-1])
        if len(end := np.flatnonzero(depth == 0)):
            self.ended, marks, kinds, depth = True, *(of[: end[0] + 1] for of in (marks, kinds, depth))
        found: Offsets = marks[(depth == 0) | ((depth == 1) & (kinds == _COMMA))]
        return found

    def _quotes(self, block: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Which bytes are quotes that no backslash escapes: not behind an odd number of them."""
        quotes: npt.NDArray[np.bool_] = block == _QUOTE
        slashes = np.flatnonzero(block == _BACKSLASH)
        if self._escaped and not (len(slashes) and slashes[0] == 0):
            quotes[0] = False
        goes_on = self._escaped
        self._escaped = False
        if len(slashes):
            begins = np.append(True, np.diff(slashes) != 1)
            begin = np.maximum.accumulate(np.where(begins, slashes, 0))
            odd = (slashes - begin) % 2 == 0
            odd[begin == 0] ^= goes_on  # the run began in the block before
            after = slashes[odd] + 1
            self._escaped = bool(len(after) and after[-1] == len(block))
            quotes[after[: len(after) - self._escaped]] = False
        return quotes
