"""New pictures of a folder, each once it is whole."""

import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from threading import Event

from PIL import Image

from tinyllava_edge.errors import CameraError, ImageError
from tinyllava_edge.image import open_picture
from tinyllava_edge.runtimes.picture_arguments import ENDINGS, natural_order

from .frames import Frame

LOOK_S = 0.1  # between two looks; a file that is the same in both may be whole
PATIENCE_S = 3.0  # for a file that does not decode and does not change: then it is damaged
_State = tuple[int, int, int]  # inode, bytes, time of change


class Folder:
    """A source of the pictures that appear in a folder or are written anew, by the endings of names.

    A picture is whole when it is the same in two looks and can be decoded. What was there before is not new.
    """

    can_wait = True
    damaged = reconnects = 0

    def __init__(self, path: Path) -> None:
        self._path, self.name = path, str(path)
        self._known = self._look()

    def frames(self, ended: Event, *, wait: bool) -> Iterator[Frame]:
        """See `Source`; of several that are new at once, the one that changed last, unless all count."""
        number = count()
        before: dict[str, _State] = {}
        since: dict[str, float] = {}  # when a look first found what a later one has not changed
        while not ended.wait(LOOK_S):
            now = self._look()
            self._known = {name: state for name, state in self._known.items() if name in now}
            fresh = {name: state for name, state in now.items() if self._known.get(name) != state}
            same = [name for name, state in fresh.items() if before.get(name) == state]
            same.sort(key=lambda name: (now[name][2], natural_order(name)))
            since = {name: since.get(name, time.monotonic()) for name in same}
            before = fresh
            for place, name in enumerate(same):
                is_left_out = not wait and place < len(same) - 1
                picture = None if is_left_out else self._opened(name, since[name])
                if picture is None and not is_left_out:
                    continue  # somebody writes it still
                self._known[name] = now[name]
                index = next(number)
                if picture is not None:
                    path = str(self._path / name)
                    yield Frame(
                        index=index, at_s=time.monotonic(), time_s=time.time(), name=path, open=picture
                    )

    def close(self) -> None:
        """Nothing is held."""

    def _opened(self, name: str, since: float) -> "_Opened | None":
        """The picture, None where it is not whole yet."""
        try:
            return _Opened(open_picture(self._path / name))
        except ImageError as error:
            is_old = time.monotonic() - since > PATIENCE_S
            return _Opened(error.with_traceback(None)) if is_old else None

    def _look(self) -> dict[str, _State]:
        found = {}
        try:
            with os.scandir(self._path) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or os.path.splitext(entry.name)[1].lower() not in ENDINGS:
                        continue
                    try:
                        if entry.is_file():
                            status = entry.stat()
                            found[entry.name] = (status.st_ino, status.st_size, status.st_mtime_ns)
                    except (FileNotFoundError, PermissionError):  # renamed meanwhile, or not ours to see
                        continue
        except OSError as error:
            raise CameraError(
                f"{self._path}: the folder cannot be read: {error.strerror}. Check it."
            ) from None
        return found


class _Opened:
    """A picture that was decoded, or why it could not be."""

    def __init__(self, found: Image.Image | ImageError) -> None:
        self._found = found

    def __call__(self) -> Image.Image:
        if isinstance(self._found, ImageError):
            raise self._found
        return self._found
