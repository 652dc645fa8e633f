"""Files of the engine cache, opened only where they are the user's own."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyllava_edge.cache import is_private
from tinyllava_edge.errors import NoEngineError

_READ_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))


@contextmanager
def open_private(path: Path) -> Iterator[int]:
    """A file that only this user may read or write, and that is no link.

    Raises:
        NoEngineError: it is not there, or not so.
    """
    try:
        handle = os.open(path, _READ_FLAGS)
    except OSError as error:
        raise NoEngineError(f"{path.name}: {(error.strerror or 'cannot be read').lower()}") from None
    try:
        status = os.fstat(handle)
        if not (stat.S_ISREG(status.st_mode) and is_private(status)):
            raise NoEngineError(f"{path.name} is not private to you")
        yield handle
    finally:
        os.close(handle)
