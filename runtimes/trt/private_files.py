"""Files of the engine cache, opened only where they are the user's own."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyllava_edge.cache import is_private
from tinyllava_edge.errors import NoEngineError
from tinyllava_edge.verified_files import open_real


@contextmanager
def open_private(path: Path) -> Iterator[int]:
    """A file that only this user may read or write, and that is no link.

    Raises:
        NoEngineError: it is not there, or not so.
    """
    try:
        file = open_real(path)
    except OSError as error:
        raise NoEngineError(f"{path.name}: {(error.strerror or 'cannot be read').lower()}") from None
    with file:
        status = os.fstat(file.fileno())
        if not (stat.S_ISREG(status.st_mode) and is_private(status)):
            raise NoEngineError(f"{path.name} is not private to you")
        yield file.fileno()
