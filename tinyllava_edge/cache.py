"""Where this program keeps what it can make again: engines, file hashes, hub configs, nano's parity."""

from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """`tinyllava-edge` below XDG_CACHE_HOME, or ~/.cache on Linux; it may not be there yet."""
    return user_cache_path("tinyllava-edge", appauthor=False)
