"""Where pictures come from: a folder, a video, a camera of this machine, or one of the network."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Protocol

from PIL import Image

from tinyllava_edge.errors import CameraError

EXPECTED = "a folder, a video file, a camera such as /dev/video0, or rtsp://HOST/PATH"
_STREAM = re.compile("rtsps?://", re.IGNORECASE)
_OTHER_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture of a source.

    Attributes:
        index: its number of all that the source had, from 0.
        at_s: of `time.monotonic`, when it was here.
        time_s: the same moment in seconds since 1970.
        position_s: from the beginning of a video or stream; None in a folder.
        name: of a picture's file; None elsewhere.
        open: decodes it or makes RGB of it; an ImageError where that cannot be.
    """

    index: int
    at_s: float
    time_s: float
    position_s: float | None = None
    name: str | None = None
    open: Callable[[], Image.Image] = field(repr=False)


class Source(Protocol):
    """What is watched.

    Attributes:
        name: for people, without a password.
        can_wait: whether a frame that is not taken yet keeps the next one from coming; no camera can.
        damaged: parts that could not be decoded so far.
        reconnects: times that a stream was lost and found again.
    """

    name: str
    can_wait: bool
    damaged: int
    reconnects: int

    def frames(self, ended: Event, *, wait: bool) -> Iterator[Frame]:
        """Frames as they come, until the end or until `ended`; for one thread.

        Args:
            ended: nobody wants more.
            wait: every one counts, so that nothing is left out, and a file keeps no time of its own.

        Raises:
            CameraError: there is no more to come, and that is not how a source ends.
        """
        ...

    def close(self) -> None:
        """Free what it holds, where no thread reads it."""
        ...


def open_source(given: "str | os.PathLike[str]") -> Source:
    """Open what is to be watched.

    Raises:
        CameraError: there is no such thing, or it shows nothing.
        FileError: a file that cannot be read.
        ModuleNotFoundError: PyAV is not installed, and it is no folder.
    """
    text = os.fspath(given)
    if _STREAM.match(text) and isinstance(given, str):
        from .video import open_stream

        return open_stream(text)
    if _OTHER_URL.match(text) and isinstance(given, str):
        raise CameraError(f"{text.partition('://')[0]}:// is no source here: expected {EXPECTED}.")
    try:
        kind = os.stat(text).st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CameraError(f"{text}: cannot be watched: {reason}. Expected {EXPECTED}.") from None
    if stat.S_ISDIR(kind):
        from .folder import Folder

        return Folder(Path(text))
    from .video import open_camera, open_file

    return open_camera(text) if stat.S_ISCHR(kind) else open_file(text)
