"""Where this program keeps what it can make again: engines, file hashes, hub configs, nano's parity."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """`tinyllava-edge` below XDG_CACHE_HOME, or ~/.cache on Linux; it may not be there yet."""
    return user_cache_path("tinyllava-edge", appauthor=False)


def is_private(status: os.stat_result) -> bool:
    """Whether a file or folder is this user's, and closed to all others.

    Windows has no such bits: there the user's profile, where the cache is, is closed to others.
    """
    user = getattr(os, "getuid", None)
    return user is None or (status.st_uid == user() and not status.st_mode & 0o077)
