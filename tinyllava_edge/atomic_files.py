"""Outputs appear whole or not at all: written in a place of work beside theirs, made durable, then renamed.

Nothing is replaced without `force`, whenever it appears, and with it only what this program wrote. A kill at
any moment leaves the old output or the new one, where the system can swap two names (Linux' renameat2).
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tinyllava_edge.file_lock import IS_WINDOWS, take_lock
from tinyllava_edge.full_disk import check_space, full_disk_named, reserve
from tinyllava_edge.output_marks import (
    Mark,
    check_apart,
    check_output,
    foreign_file,
    no_mark,
    pictures_read,
    settled,
)
from tinyllava_edge.publish import fsync, give_back, publish
from tinyllava_edge.work_places import FILE_MARK, clear_dead, size_of, work_place

__all__ = [  # all that who writes an output needs
    "Mark", "check_apart", "check_output", "check_space", "foreign_file", "fsync", "full_disk_named",
    "no_mark", "output_directory", "output_file", "pictures_read", "reserve", "write_bytes", "write_json",
]  # fmt: skip


@contextmanager
def output_directory(
    target: Path, *, force: bool = False, mark: Mark = no_mark, needed: int = 0
) -> Iterator[Path]:
    """A directory beside `target` that takes its place on success, and is removed on failure.

    Args:
        target: where it will be.
        force: replace what is there, if it is this program's own.
        mark: tells that.
        needed: bytes that it will have at least.

    Raises:
        OutputExistsError: as `check_output`, also for what appears during the work.
        DiskFullError: there is no room.
    """
    target = settled(target)
    with _beside(target, force=force, mark=mark, needed=needed) as work:
        with full_disk_named(target):
            work.mkdir()
        with full_disk_named(target, lambda: max(needed, size_of(work) + 1)):
            yield work
            work.chmod(0o755)
            publish(work, target, force=force, mark=mark)


@contextmanager
def output_file(
    target: Path, *, force: bool = False, mark: Mark = no_mark, mode: int = 0o644
) -> Iterator[Path]:
    """An empty file beside `target` that takes its place on success, likewise."""
    target = settled(target)
    with _beside(target, force=force, mark=mark) as work:
        with full_disk_named(target):
            work.touch(mode=0o600)
        with full_disk_named(target, lambda: size_of(work) + 1):
            yield work
            fsync(work)
            work.chmod(mode)
            publish(work, target, force=force, mark=mark)


@contextmanager
def _beside(target: Path, *, force: bool, mark: Mark, needed: int = 0) -> Iterator[Path]:
    """A name beside `target`; what has it at the end is removed, and before what killed processes left."""
    prefix = f".{target.name}.tmp-"
    give_back(target)
    check_output(target, force=force, mark=mark)
    clear_dead(target.parent, prefix)
    check_space(target, needed)
    with ExitStack() as stack:
        with full_disk_named(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            place = stack.enter_context(work_place(target.parent, prefix))
        yield place / f"new{target.suffix}"


def write_json(path: Path, value: object, *, mode: int = 0o644) -> None:
    """Write a JSON file that is complete whenever it is seen."""
    write_bytes(path, json.dumps(value, indent=1, ensure_ascii=False).encode(), mode=mode)


def write_bytes(path: Path, content: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write a file that is complete whenever it is seen; one that is there is replaced."""
    with full_disk_named(path, lambda: len(content)):
        # The suffix is kept: what a killed process leaves in a bundle's parity/ is allowed there.
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}.{FILE_MARK}", suffix=path.suffix, dir=path.parent
        )
        try:
            take_lock(handle)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(name, mode)
                if not IS_WINDOWS:
                    os.replace(name, path)  # locked until it has its name
            if IS_WINDOWS:
                os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
