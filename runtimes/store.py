"""A bounded store on disk of what pictures become, so that none is computed again after a restart.

It holds a picture's embeddings, and the state of a language model's context that a picture is in. A key is
made of everything that either depends on: the pixels, the bundle, both backends as they were opened, the
libraries and the processor. What is read is checked against its own hash first, as a native library reads a
state, and only from files that no other user can write.
"""

import hashlib
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from tinyllava_edge.atomic_files import write_bytes
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.cache import cache_folder, is_private
from tinyllava_edge.device import read_cpu
from tinyllava_edge.verified_files import open_real

from .auto import Opened
from .base import BackendOptions
from .registry import runtime_entries

FOLDER = "pictures"  # in the cache
_DIGEST_BYTES = 32


def open_store(
    bundle: Bundle, opened: Opened, options: BackendOptions, max_bytes: int
) -> "PictureStore | None":
    """The store for a runtime as it was opened, None where nothing is to be kept; nothing is read yet."""
    if max_bytes == 0:
        return None
    cpu = read_cpu()
    packages = [entry.package for entry in runtime_entries(opened.runtime) if entry.package]
    depends_on = [
        bundle.manifest_sha256,
        *(f"{name} {getattr(sys.modules.get(name), '__version__', '')}" for name in packages),
        f"{cpu.model} {' '.join(cpu.features)}",
        f"flash attention {options.flash_attention}",
        *(f"{backend.name} {getattr(backend, 'build', '')}" for backend in (opened.vision, opened.language)),
    ]
    base = hashlib.sha256("\0".join(depends_on).encode()).digest()
    return PictureStore(cache_folder() / FOLDER, base, max_bytes)


def key_of(ids_and_pictures: Sequence[int | bytes]) -> bytes:
    """The key of a beginning of a prompt: token ids, and the keys of its pictures."""
    digest = hashlib.sha256()
    for element in ids_and_pictures:
        digest.update(b"i" + np.int32(element).tobytes() if isinstance(element, int) else b"p" + element)
    return digest.digest()


class PictureStore:
    """Contents by kind and key in one directory; the least recently used are removed.

    A store that cannot be written keeps nothing, and one that was damaged has nothing: what it would have
    given is computed.

    Args:
        folder: made when something is kept; private to this user.
        base: what every key depends on.
        max_bytes: of all contents together, whichever bundle they are of.
    """

    def __init__(self, folder: Path, base: bytes, max_bytes: int) -> None:
        self._folder = folder
        self._base = base
        self._max_bytes = max_bytes

    def has(self, kind: str, key: bytes) -> bool:
        """Whether something is kept under a key; it may prove damaged."""
        return self._path(kind, key).is_file()

    def read(self, kind: str, key: bytes) -> bytes | None:
        """What was kept, or None."""
        path = self._path(kind, key)
        with suppress(OSError), open_real(path) as file:
            status = os.fstat(file.fileno())
            if not (stat.S_ISREG(status.st_mode) and is_private(status)) or status.st_size > self._max_bytes:
                return None
            digest, content = file.read(_DIGEST_BYTES), file.read()
            if digest == _digest(path.name, content):
                os.utime(path)  # now the most recently used
                return content
            path.unlink()
        return None

    def keep(self, kind: str, key: bytes, content: bytes | memoryview) -> None:
        """Keep a content, unless it alone is more than the store may hold."""
        path = self._path(kind, key)
        size = _DIGEST_BYTES + len(content)
        if size > self._max_bytes:
            return
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room(size)
            write_bytes(path, _digest(path.name, content) + bytes(content), mode=0o600)

    def _path(self, kind: str, key: bytes) -> Path:
        return self._folder / hashlib.sha256(self._base + kind.encode() + key).hexdigest()

    def _make_room(self, size: int) -> None:
        files = [(path, path.stat()) for path in self._folder.iterdir() if not path.name.startswith(".")]
        used = sum(status.st_size for _, status in files)
        for path, status in sorted(files, key=lambda file: file[1].st_mtime_ns):
            if used + size <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            used -= status.st_size


def _digest(name: str, content: bytes | memoryview) -> bytes:
    """The name counts, so that a file under another's name is none."""
    digest = hashlib.sha256(name.encode())
    digest.update(content)
    return digest.digest()
