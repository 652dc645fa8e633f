"""A full disk is one error, with the path and the bytes that are needed there."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyllava_edge.errors import DiskFullError, ExportError, OutputError, TinyLlavaEdgeError
from tinyllava_edge.output_marks import settled
from tinyllava_edge.process import STREAMS

NOT_KNOWN = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)  # by the file system, or the kernel
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_NO_ROOM = 1 << 16  # bytes: libraries that hide the system's error fail with less than this


def reserve(path: Path, size: int) -> None:
    """Give a file that many bytes on the disk: to write to a mapped hole of a full one is a SIGBUS.

    Raises:
        DiskFullError: there is no room.
    """
    with full_disk_named(path, lambda: size), path.open("r+b") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in NOT_KNOWN:
                raise
        file.seek(0, os.SEEK_END)
        while missing := size - file.tell():
            file.write(bytes(min(missing, 1 << 20)))


def check_space(path: Path, needed: int) -> None:
    """Look at the free space before any work.

    Raises:
        DiskFullError: it is less than `needed` bytes.
    """
    if free_bytes(path) < needed:
        raise _disk_full(path, needed)


@contextmanager
def full_disk_named(path: Path, needed: Callable[[], int] = lambda: 1) -> Iterator[None]:
    """Give what the system says of the body's writing, which names no file, the path that is written.

    Raises:
        DiskFullError: the disk is full; with the bytes that are needed.
        OutputError: anything else that names no file, as a quota or a disk that fails.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if getattr(error, "filename", None) in STREAMS:
            raise
        said = _OS_ERROR.search(str(error))  # of a library that is no Python
        number = int(said[1]) if said else getattr(error, "errno", None)
        known = number in _FULL or "No space left on device" in str(error)
        temporary = Path(tempfile.gettempdir())
        full = next((place for place in (path, temporary) if free_bytes(place) < _NO_ROOM), None)
        is_vague = isinstance(error, (OSError, RuntimeError, ExportError)) and not getattr(error, "errno", 0)
        if known or (full and is_vague):
            raise _disk_full(full or path, needed()) from error
        named = getattr(error, "filename", None) or isinstance(error, (TinyLlavaEdgeError, ConnectionError))
        if (isinstance(error, OSError) or said) and not named:
            what = os.strerror(int(said[1])) if said else getattr(error, "strerror", None) or error
            raise OutputError(
                f"{path}: {what}, while it was written. Look at its disk and quota, or choose another place."
            ) from error
        raise


def _disk_full(path: Path, needed: int) -> DiskFullError:
    return DiskFullError(
        f"{path}: the disk is full: {needed:,} bytes are needed there at least, {free_bytes(path):,} are "
        "free. Make room, or choose a place on another disk."
    )


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that a path, which need not be there, is on."""
    path = settled(path)
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free
