"""Give what was written its name: nothing is replaced that may not be, the old or the new is always there.

Linux' renameat2 swaps two names, or takes one that is free, in one step. Elsewhere it takes two, and a kill
between them leaves what was replaced in `.NAME.old-xxxxxxxx/old`, which the next run gives back.
"""

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

from tinyllava_edge.errors import OutputExistsError
from tinyllava_edge.file_lock import IS_WINDOWS
from tinyllava_edge.full_disk import NOT_KNOWN
from tinyllava_edge.output_marks import Mark, check_output
from tinyllava_edge.work_places import (
    LOCK_FILE,
    give_up,
    locked_if_dead,
    new_place,
    note,
    places,
    remove_place,
)

_NO_REPLACE, _EXCHANGE = 1, 2  # RENAME_NOREPLACE, RENAME_EXCHANGE of Linux' fs.h
_HERE = -100  # AT_FDCWD
_OLD = "old"


def publish(work: Path, target: Path, *, force: bool, mark: Mark) -> None:
    """Give `work` the name `target`; afterwards `work` is what was replaced, or is not there."""
    check_output(target, force=force, mark=mark)
    try:
        if force and os.path.lexists(target):
            if not _renamed(work, target, _EXCHANGE):
                _replace_in_turn(work, target)
        elif not _renamed(work, target, _NO_REPLACE):
            _claim(work, target)
    except FileExistsError:
        raise OutputExistsError(
            f"{target}: appeared while it was being written, and stays. Choose another name."
        ) from None
    fsync(target.parent)


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk; Windows has no word for the latter."""
    if IS_WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if IS_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _renamed(work: Path, target: Path, flag: int) -> bool:
    """Rename as Linux' renameat2 does; false, with a word, where the system cannot."""
    if IS_WINDOWS and flag == _NO_REPLACE:  # there a rename replaces nothing
        work.rename(target)
        return True
    rename = None if IS_WINDOWS else getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    code = errno.ENOSYS
    if rename is not None:
        if rename(_HERE, os.fsencode(work), _HERE, os.fsencode(target), flag) == 0:
            return True
        code = ctypes.get_errno()
    if code not in NOT_KNOWN:
        raise OSError(code, os.strerror(code), str(target))
    note(
        f"{target.parent}: cannot swap names in one step here ({os.strerror(code)}), so a kill right now "
        f"would leave {target.name} empty, or the old one beside it in .{target.name}.old-*"
    )
    return False


def _claim(work: Path, target: Path) -> None:
    """Make the name, which fails where there is one, and rename over what was just made."""
    is_folder = work.is_dir() and not work.is_symlink()
    if is_folder:
        target.mkdir()
    else:
        target.touch(exist_ok=False)
    try:
        work.rename(target)
    except BaseException:
        with suppress(OSError):
            target.rmdir() if is_folder else target.unlink()
        raise


def _replace_in_turn(work: Path, target: Path) -> None:
    """Move `target` aside, and back on failure; what cannot be put back stays there."""
    aside, lock = new_place(target.parent, f".{target.name}.old-")
    try:
        try:
            target.rename(aside / _OLD)
            work.rename(target)
        except BaseException:
            if os.path.lexists(aside / _OLD):
                (aside / _OLD).rename(target)
            remove_place(aside)
            raise
        remove_place(aside)
    finally:
        give_up(aside, lock)


def give_back(target: Path) -> None:
    """Give back what a killed process had moved aside; where there is a new one, name the old."""
    for aside in places(target.parent, f".{target.name}.old-"):
        old = aside / _OLD
        with locked_if_dead(aside / LOCK_FILE) as is_dead:
            if is_dead and not os.path.lexists(old):
                remove_place(aside)
            elif is_dead and not os.path.lexists(target):
                _claim(old, target)
                remove_place(aside)
                note(f"{target}: given back; the run that was replacing it was killed")
            elif is_dead:
                note(f"{old}: what {target} was before a run that was killed; remove it when you are sure")
