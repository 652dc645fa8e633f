"""JSON lines that are on the disk as they come, and that an interrupted run goes on with.

As long as `FILE` is not complete, `FILE.work.json` beside it says what its lines depend on, and behind that
which other files it wrote, by hash. Whoever writes holds a lock on that, which is gone with its process.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import (
    Mark,
    check_output,
    fsync,
    full_disk_named,
    no_mark,
    output_file,
    write_bytes,
)
from tinyllava_edge.console import note
from tinyllava_edge.errors import OutputBusyError, OutputExistsError, ResumeError
from tinyllava_edge.file_lock import IS_WINDOWS, OPEN_FLAGS, lock_at

Line = dict[str, Any]
_DEPENDS_ON = "depends_on"
_SHOWN = 60  # characters of a value that differs


def work_path(path: Path) -> Path:
    """What stands beside a file that is not complete."""
    return path.with_name(f"{path.name}.work.json")


def is_complete(path: Path) -> bool:
    """Whether a file is there, and nobody is to go on with it."""
    return path.exists() and not work_path(path).exists()


def encode_line(line: Mapping[str, Any]) -> bytes:
    """A line of JSON in UTF-8; half a surrogate pair, which that cannot have, stays the escape it was."""
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def read_lines(path: Path) -> list[Line]:
    """The lines of a file, without a last one that a kill left half written.

    Raises:
        ResumeError: a line is no JSON object.
    """
    return _parse(path, path.read_bytes())


@contextmanager
def append_lines(
    path: Path,
    depends_on: Mapping[str, Any],
    *,
    resume: bool = False,
    force: bool = False,
    mark: Mark = no_mark,
    others: Sequence[Path] = (),
) -> "Iterator[AppendedLines]":
    """Open a file to append lines to; it stays as it is until the first of them.

    Args:
        path: the file.
        depends_on: what the lines follow from, by name, as JSON has it; a run goes on only with the same.
        resume: go on with what an unfinished run left; where there is nothing, begin.
        force: replace a file that is this program's own.
        mark: tells that.
        others: files that `settle` writes too, under the same rules; what they hold is gone on with too. What
            appears there meanwhile stays.

    Raises:
        OutputBusyError: another process writes it.
        OutputExistsError: it is there, and neither `resume` nor `force` is given, or it is not ours; or it
            appears before the first line, or one of the others that this run did not write.
        ResumeError: it is complete, damaged, or its lines depend on something else, which is named.
        DiskFullError: there is no room.
    """
    with full_disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = AppendedLines(path, json.loads(json.dumps(depends_on)), others)
    try:
        lines.take_up(resume=resume, force=force, mark=mark)
        yield lines
    finally:
        lines.close()


@contextmanager
def kept_is_said(file: "AppendedLines") -> Iterator[None]:
    """Whatever ends the block, say how to go on with what stands in the file."""
    try:
        yield
    except BaseException:
        if file.begun:
            note(f"{file.path}: what was answered is kept; --resume goes on with it.")
        raise


class AppendedLines:
    """A file that grows by whole lines: see `append_lines`.

    Attributes:
        path: the file.
        lines: that were there when it was opened, in it and the others.
    """

    def __init__(self, path: Path, depends_on: Mapping[str, Any], others: Sequence[Path] = ()) -> None:
        self.path = path
        self.lines: list[Line] = []
        self._all = (path, *others)
        self._depends_on = depends_on
        self._work = work_path(path)
        self._wrote: list[str] = []  # hashes of what `settle` gave the others
        self._force = False
        self._mark: Mark = no_mark
        self._file: int | None = None
        self._is_finished = False
        self._lock = _lock(self._work, path)

    def take_up(self, *, resume: bool, force: bool, mark: Mark) -> None:
        """Read what is there, or refuse it; arguments and errors as of `append_lines`."""
        self._force, self._mark = force, mark
        begun = self._begun_with()
        if begun is not None and resume and not force:
            self._check_same(begun)
            content = self.path.read_bytes() if self.path.exists() else b""
            self.lines = _parse(self.path, content)
            for path in self._all[1:]:
                check_output(path, force=True, mark=self._foreign)
                self.lines += read_lines(path) if path.exists() else []
            self._open(os.O_CREAT)
            os.ftruncate(self._fd, content.rfind(b"\n") + 1)
            return
        if begun is not None and not force:
            raise OutputExistsError(
                f"{self.path}: a run that did not end has left it. --resume goes on, --force begins anew."
            )
        if resume and not force and os.path.lexists(self.path):
            raise ResumeError(
                f"{self.path}: complete, without {self._work.name} beside it: nothing to resume. "
                "--force begins anew."
            )
        for path in self._all:
            check_output(path, force=force, mark=mark)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line; it is on the disk, or the file is as it was.

        Raises:
            DiskFullError: there is no room.
        """
        if self._file is None:
            self._begin()
        content = memoryview(encode_line(line))
        end = os.fstat(self._fd).st_size
        with full_disk_named(self.path, lambda: len(content)):
            try:
                rest = content
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
                os.fsync(self._fd)
            except BaseException:
                os.ftruncate(self._fd, end)
                raise

    def settle(self, *lines: Iterable[Mapping[str, Any]]) -> None:
        """Give the file, and then each of the others, its last form; nothing is appended after that.

        Each takes it in one step, the file itself last: until then it holds what the others will.

        Raises:
            OutputExistsError: one of the others is there, and no run that this one goes on with wrote it.
            DiskFullError: there is no room.
        """
        if self._file is None:
            self._begin()
        own, *others = [b"".join(map(encode_line, its)) for its in lines]
        hashes = [sha256(content).hexdigest() for content in others]
        self._wrote += hashes
        with full_disk_named(self._work):  # appended: a kill or a full disk leaves what it depends on
            os.lseek(self._lock, 0, os.SEEK_END)
            os.write(self._lock, "\n".join(["", *hashes]).encode())
            os.fsync(self._lock)
        for path, content in reversed(list(zip(self._all[1:], others, strict=True))):
            if not path.is_file() or content != path.read_bytes():
                with output_file(path, force=True, mark=self._foreign) as new:
                    new.write_bytes(content)
        if not self.path.exists() or own != self.path.read_bytes():
            write_bytes(self.path, own)

    def finish(self) -> None:
        """The file is complete: nobody goes on with it."""
        self._is_finished = True
        if not IS_WINDOWS:
            self._work.unlink()
        fsync(self.path.parent)

    def close(self) -> None:
        """Give the lock up; where nothing was written, nothing stays."""
        if self._file is not None:
            os.close(self._file)
        elif not os.fstat(self._lock).st_size:
            self._is_finished = True
            with suppress(OSError):
                self._work.unlink()
        os.close(self._lock)
        if IS_WINDOWS and self._is_finished:
            with suppress(OSError):
                self._work.unlink()

    @property
    def begun(self) -> bool:
        """Whether the file is there, and goes on or is to be gone on with."""
        return self._file is not None

    @property
    def _fd(self) -> int:
        assert self._file is not None
        return self._file

    def _begin(self) -> None:
        """The old file goes first: a kill never leaves it as if it were of this run."""
        for path in self._all:
            check_output(path, force=self._force, mark=self._mark)
        with full_disk_named(self.path):
            for path in self._all if self._force else ():
                path.unlink(missing_ok=True)
            os.ftruncate(self._lock, 0)
            os.lseek(self._lock, 0, os.SEEK_SET)
            os.write(self._lock, json.dumps({_DEPENDS_ON: self._depends_on}, indent=1).encode())
            os.fsync(self._lock)
            try:
                self._open(os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                os.ftruncate(self._lock, 0)
                raise OutputExistsError(f"{self.path}: has just appeared. Choose another name.") from None
            fsync(self.path.parent)

    def _open(self, flags: int) -> None:
        self._file = os.open(self.path, OPEN_FLAGS & ~os.O_CREAT | os.O_APPEND | flags, 0o644)

    def _foreign(self, path: Path) -> str:
        ours = sha256(path.read_bytes()).hexdigest() in self._wrote
        return "" if ours else "holds what this run did not write"

    def _begun_with(self) -> dict[str, Any] | None:
        """What the unfinished file depends on, or None where there is none."""
        os.lseek(self._lock, 0, os.SEEK_SET)
        content = os.read(self._lock, os.fstat(self._lock).st_size)
        if not content:
            return None
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            text = content.decode()
            found, end = json.JSONDecoder().raw_decode(text)
            if isinstance(begun := found[_DEPENDS_ON], dict):
                self._wrote = text[end:].split()
                return begun
        raise ResumeError(f"{self._work}: damaged, or not this program's. Remove it, or choose another name.")

    def _check_same(self, begun: Mapping[str, Any]) -> None:
        now = self._depends_on
        names = [name for name in {**begun, **now} if begun.get(name) != now.get(name)]
        if names:
            differing = ", ".join(
                f"{name} was {begun.get(name)!r:.{_SHOWN}} and is {now.get(name)!r:.{_SHOWN}}"
                for name in names
            )
            raise ResumeError(
                f"{self.path}: was begun with something else: {differing}. Give the same again, or --force "
                "to begin anew."
            )


def _lock(work: Path, path: Path) -> int:
    handle = lock_at(work, 0o644)
    if handle is None:
        raise OutputBusyError(f"{path}: another process is writing it. Wait for it, or choose another name.")
    return handle


def _parse(path: Path, content: bytes) -> list[Line]:
    lines = []
    for number, text in enumerate(content.split(b"\n")[:-1], 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            raise ResumeError(f"{path}: line {number} is no JSON object: damaged. --force begins anew.")
        lines.append(line)
    return lines
