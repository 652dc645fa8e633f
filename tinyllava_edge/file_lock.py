"""A file as a lock among processes: the lock of one that died is gone with it."""

import os
from collections.abc import Callable
from pathlib import Path

# A link in the last place is not followed, and a child process does not inherit the lock.
OPEN_FLAGS = os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def open_lock(path: Path, mode: int = 0o600) -> int:
    """Open a lock's file, made where there is none; close the handle to give the lock up."""
    return os.open(path, OPEN_FLAGS, mode)


def take_lock(handle: int, on_wait: Callable[[], None] | None = None) -> bool:
    """Lock an open file, alone among all processes, until the handle is closed.

    Args:
        handle: a file's descriptor.
        on_wait: called where another process has it, before waiting for it; None does not wait.

    Returns:
        False where another process has it and nothing waits; true where the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if on_wait is None:
            return False
        on_wait()
        fcntl.flock(handle, fcntl.LOCK_EX)
    return True
