"""Places of work: hidden directories in which outputs grow, each locked by its process while that lives.

    .NAME.tmp-xxxxxxxx/     beside NAME: what will be NAME, or for a moment what was
    .work.xxxxxxxx/         in the cache of engines
    tinyllava-edge-xxxxxxxx/  in the system's directory of temporary files

Each holds `LOCK_FILE`. Where nobody holds its lock, the process has died, and the place is ours to remove.
Where the file system has no locks nobody can tell, and it stays.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from tinyllava_edge.errors import UsageError
from tinyllava_edge.file_lock import IS_WINDOWS, OPEN_FLAGS, lock_at, take_lock
from tinyllava_edge.full_disk import full_disk_named

LOCK_FILE = "tinyllava-edge.lock"
TEMPORARY = "tinyllava-edge-"
FILE_MARK = TEMPORARY  # in the name of a small file that grows by itself, locked too
RANDOM = "[a-z0-9_]{8}"  # what `tempfile` ends a name with


@contextmanager
def work_place(parent: Path, prefix: str) -> Iterator[Path]:
    """A new directory of this process alone; it and those of dead processes are removed.

    Args:
        parent: that it is made in.
        prefix: of its name.
    """
    clear_dead(parent, prefix)
    folder, handle = new_place(parent, prefix)
    try:
        yield folder
    finally:
        remove_place(folder)
        give_up(folder, handle)


def temporary_place() -> AbstractContextManager[Path]:
    """A place where the system keeps temporary files."""
    return work_place(Path(tempfile.gettempdir()), TEMPORARY)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Work in a directory alone among all processes; one that then holds nothing is removed.

    Raises:
        UsageError: another process works there.
    """
    with full_disk_named(folder):
        handle = _lock_in(folder)
    if handle is None:
        raise UsageError(f"{folder}: another process works there. Wait for it, or stop it.")
    try:
        yield
    finally:
        with suppress(OSError):
            if is_unused(folder):
                remove_place(folder)
        give_up(folder, handle)


def _lock_in(folder: Path) -> int | None:
    """The handle of a directory's lock; the directory is made, again if another process removes it."""
    while True:
        try:
            return lock_at(folder / LOCK_FILE)
        except FileNotFoundError:
            try:
                folder.mkdir(parents=True)
            except FileExistsError:  # made by another process meanwhile
                if folder.is_symlink():  # to what is not there
                    raise


def is_unused(folder: Path) -> bool:
    """Whether a directory is not there, or holds nothing but a lock."""
    return not folder.is_dir() or {*os.listdir(folder)} <= {LOCK_FILE}


def clear_dead(parent: Path, prefix: str) -> None:
    """Remove the places that killed processes left, and say so."""
    for folder in places(parent, prefix):
        size = size_of(folder)
        if remove_dead(folder) and size:
            note(f"{folder}: removed, {size:,} bytes that a killed process left")


def places(parent: Path, prefix: str) -> list[Path]:
    """Directories there with such a name."""
    name = re.compile(re.escape(prefix) + RANDOM)
    if not parent.is_dir():
        return []
    with os.scandir(parent) as entries:
        return [Path(e) for e in entries if name.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]


def remove_dead(folder: Path) -> bool:
    """Remove a place if its process has died, or an empty one; whether it is gone."""
    with suppress(OSError):
        folder.rmdir()
        return True
    with locked_if_dead(folder / LOCK_FILE) as is_dead:
        if is_dead:
            remove_place(folder)
    return is_dead and not folder.exists()


@contextmanager
def locked_if_dead(lock: Path) -> Iterator[bool]:
    """Whether a lock is a file of this user that no process holds; this one holds it for the block then."""
    with ExitStack() as stack:
        is_dead = False
        with suppress(OSError):
            handle = os.open(lock, (OPEN_FLAGS | getattr(os, "O_NONBLOCK", 0)) & ~os.O_CREAT)
            stack.callback(os.close, handle)
            status = os.fstat(handle)
            is_ours = stat.S_ISREG(status.st_mode) and (IS_WINDOWS or status.st_uid == os.getuid())
            is_dead = is_ours and take_lock(handle, where_there_are_none=False)
        yield is_dead


def size_of(root: Path) -> int:
    """Bytes of a file, or of the files below a directory; what goes meanwhile does not count."""
    total = 0
    below = (os.path.join(folder, name) for folder, _, files in os.walk(root) for name in files)
    for path in below if root.is_dir() else [root]:
        with suppress(OSError):
            total += os.lstat(path).st_size
    return total


def remove(path: Path) -> None:
    """Remove a directory, file or link, as far as that can be done; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def new_place(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new directory, and the handle of its lock, which is closed when the directory is given up."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            handle = lock_at(folder / LOCK_FILE)
        except FileNotFoundError:  # another process took it for one that was left
            continue
        except BaseException:
            remove_place(folder)
            raise
        if handle is not None:
            return folder, handle


def note(text: str) -> None:
    """Say on stderr what was done with what was left."""
    from tinyllava_edge.console import note as say  # rich, which most runs of a library do not need

    say(text)


def empty(folder: Path) -> bool:
    """Remove all in a place but its lock; whether that could be done, with a note where not."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name != LOCK_FILE:
                remove(path)
        if is_unused(folder):
            return True
    note(f"{folder}: could not be removed; look at the permissions of what is in it")
    return False


def remove_place(folder: Path) -> None:
    """The lock goes last: what is left of a place whose removal fails or is killed is still one."""
    with suppress(OSError):
        if folder.is_dir() and empty(folder):
            (folder / LOCK_FILE).unlink(missing_ok=True)
            folder.rmdir()


def give_up(folder: Path, handle: int) -> None:
    """Close a place's lock; NFS and Windows keep the file, and so the place, until then."""
    os.close(handle)
    with suppress(OSError):
        if IS_WINDOWS and is_unused(folder):
            (folder / LOCK_FILE).unlink(missing_ok=True)
        folder.rmdir()
