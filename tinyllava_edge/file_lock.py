"""A file as a lock among processes: the lock of one that died is gone with it.

flock, and no package around it: a lock's file here goes with the work that it guards, so whoever waited asks
whether the name is still this file's, and each caller says what counts where a file system has no locks.
"""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# There an open file cannot be renamed or removed, a directory cannot be opened, and no lock is as here.
IS_WINDOWS = not hasattr(os, "fork")
# A link in the last place is not followed, and a child process does not inherit the lock.
OPEN_FLAGS = (
    os.O_CREAT | os.O_RDWR | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))
)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def open_lock(path: Path, mode: int = 0o600) -> int:
    """Open a lock's file, made where there is none; close the handle to give the lock up."""
    return os.open(path, OPEN_FLAGS, mode)


def lock_at(path: Path, mode: int = 0o600) -> int | None:
    """The handle of a lock's file that this process alone has, and that has this name; None if another does.

    Raises:
        FileNotFoundError: there is no such directory, any more.
    """
    while True:
        handle, is_ours = open_lock(path, mode), False
        try:
            if not take_lock(handle):
                return None
            with suppress(FileNotFoundError):  # whoever had it has just removed the name
                is_ours = os.path.samestat(os.fstat(handle), path.stat())
            if is_ours:
                return handle
        finally:
            if not is_ours:
                os.close(handle)


def take_lock(
    handle: int, on_wait: Callable[[], None] | None = None, *, where_there_are_none: bool = True
) -> bool:
    """Lock an open file, alone among all processes, until the handle is closed.

    Args:
        handle: a file's descriptor.
        on_wait: called where another process has it, before waiting for it; None does not wait.
        where_there_are_none: what to answer where the system, or the file's, has no such locks.

    Returns:
        False where another process has it and nothing waits.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return where_there_are_none
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if on_wait is None:
            return False
        on_wait()
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return where_there_are_none
    return True
