"""Where pictures come from: a folder, a video, a camera of this machine, or one of the network."""

import os
import re
import stat
from pathlib import Path

from tinyllava_edge.errors import CameraError

from .frames import Source

EXPECTED = "a folder, a video file, a camera such as /dev/video0, or rtsp://HOST/PATH"
_STREAM = re.compile("rtsps?://", re.IGNORECASE)
_OTHER_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


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
