"""Push files out of the page cache, so that opening them is as cold as after a start of the machine."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_LEFT_OVER = 0.02  # share of the pages that may stay, for a load to be called cold


def evict(paths: Iterable[Path]) -> bool:
    """Ask the kernel to forget the pages of files; needs no privilege.

    Returns:
        Whether they have left: not where a process has them mapped, the files are on a RAM disk, or the
        system cannot tell.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    left = [_evict_one(path) for path in paths]
    return all(left)


def _evict_one(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)  # only what is on the disk is forgotten
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        return resident_share(handle) <= _LEFT_OVER
    except OSError:
        return False
    finally:
        os.close(handle)


def resident_share(handle: int) -> float:
    """Share of an open file's pages that are in memory, by mincore(2).

    Raises:
        OSError: the system does not say.
    """
    size = os.fstat(handle).st_size
    if size == 0:
        return 0.0
    library = ctypes.CDLL(None, use_errno=True)
    pages = -(-size // mmap.PAGESIZE)
    marks = (ctypes.c_ubyte * pages)()
    # ACCESS_COPY: ctypes takes the address of writable memory only; nothing is written.
    with mmap.mmap(handle, size, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        failed = library.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), marks)
        del first  # or the mapping cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return sum(mark & 1 for mark in bytes(marks)) / pages
