"""Memory of files already hashed, so that opening a bundle does not hash gigabytes again."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tinyllava_edge.atomic_files import write_json
from tinyllava_edge.cache import cache_folder, is_private

# A change within one tick of the file system's clock leaves no trace in ctime. So, like git, a file is
# remembered only when its last change is older than any tick.
SETTLED_AFTER_NS = 2_000_000_000
MAX_ENTRIES = 10_000


# A link in the last place is not followed, and a pipe is not waited for.
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def sha256_of_file(path: Path) -> str:
    """Hash a file without holding it in memory."""
    with path.open("rb") as file:
        return sha256_of_open(file)


def sha256_of_open(file: BinaryIO) -> str:
    """Hash what is left to read of an open file, likewise."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def open_real(path: Path) -> BinaryIO:
    """Open a file to read it; a link in the last place is an OSError."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | _FLAGS))


def state_of(status: os.stat_result) -> tuple[int, int, int]:
    """What differs once a file was changed or replaced; an inode is not the same at each call everywhere."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class VerifiedFiles:
    """SHA-256 of files by device, inode, size, mtime and ctime, in a private cache of the user.

    ctime cannot be set back, so a file changed under a restored mtime is found.
    """

    def __init__(self) -> None:
        """Read the cache; one that is damaged, or that others can write, counts as empty."""
        self._path = cache_folder() / "verified.json"
        self._known: dict[str, str] = {}
        self._added = False
        with suppress(OSError, ValueError, RecursionError), self._path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if is_private(status) and isinstance(known := json.load(file), dict):
                self._known = known

    def knows(self, status: os.stat_result, sha256: str) -> bool:
        """Whether the file with this status was hashed before, and to this value."""
        return self._known.get(_key(status)) == sha256

    def add(self, status: os.stat_result, sha256: str) -> None:
        """Remember a hash; `status` is from before the file was read."""
        if time.time_ns() - status.st_ctime_ns > SETTLED_AFTER_NS:
            self._known[_key(status)] = sha256
            self._added = True

    def save(self) -> None:
        """Write the cache; where that fails, the next start hashes again."""
        if not self._added:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_json(self._path, dict(list(self._known.items())[-MAX_ENTRIES:]), mode=0o600)


def _key(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
