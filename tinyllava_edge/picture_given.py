"""What one picture may be given as, told in one place, and how each becomes a file or an image."""

import base64
import binascii
import io
import os
import re
from collections.abc import Callable
from typing import Any, BinaryIO
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
from PIL import Image

from tinyllava_edge.errors import ImageError
from tinyllava_edge.user_files import open_user_file

# A file with `read` is any binary one: BytesIO, an open file, an upload, a response of urllib.
Picture = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | npt.NDArray[np.uint8] | Image.Image
)
Fetch = Callable[[str], bytes]
EXPECTED = (
    "a path, a data or https URL, what is in a file (bytes, or a file opened to read bytes), a PIL image, or "
    "an array of uint8 [height, width, 3], [height, width] or [height, width, 4]"
)
_URL = re.compile("https?://", re.IGNORECASE)
_DATA_URL = re.compile(r"data:([^,]{0,200}),", re.IGNORECASE)
_KINDS = (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray, Image.Image)


def is_picture(given: object) -> bool:
    """Whether something is one picture by its kind, right or wrong, and not several."""
    return isinstance(given, _KINDS) or hasattr(given, "read")


def is_data_url(text: str) -> bool:
    """Whether a text is meant as a data URL."""
    return text[:5].lower() == "data:"


def is_url(given: object) -> bool:
    """Whether a picture is named by a URL; a `Path` never is, whatever its name."""
    return isinstance(given, str) and (is_data_url(given) or _URL.match(given) is not None)


def name_of(picture: object) -> str:
    """A picture in a message: never what is in it, and of a URL not the query, which may hold a key."""
    if isinstance(picture, str):
        if is_data_url(picture):
            return f"data URL of {len(picture):,} characters"
        return f"{picture.split('?')[0]:.200}" if is_url(picture) else picture
    if isinstance(picture, os.PathLike):
        return os.fsdecode(picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        return f"picture of {memoryview(picture).nbytes} bytes"
    name = getattr(picture, "name", None)  # of a file
    return name if hasattr(picture, "read") and isinstance(name, str) and name else "picture"


def not_a_picture(given: object, more: str = "") -> ImageError:
    """What is said of anything else."""
    return ImageError(f"{type(given).__name__} is no picture: expected {EXPECTED}.{more}")


def refuse_url(url: str) -> ImageError:
    """What is said of an URL where nothing is to be fetched."""
    return ImageError(
        f"{name_of(url)}: nothing is fetched unless you say so: --allow-url (allow_url=True, or a function "
        "that fetches)."
    )


def as_file(picture: Any, *, max_bytes: int, allow_url: bool | Fetch = False) -> BinaryIO | Image.Image:
    """A file to decode, which is the caller's to close, or an image where there is nothing to decode.

    Args:
        picture: see `Picture`. A file is read from its beginning where it can go there, and stays open.
        max_bytes: of a file, or of what is in one.
        allow_url: whether an https URL is fetched, with `picture_url.fetch_https`; or what fetches it.

    Raises:
        ImageError: it is nothing of the kind, or too large, or may not or cannot be fetched or read.
    """
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if is_url(picture):
        return _in_memory(_from_url(picture, max_bytes, allow_url), max_bytes)
    if isinstance(picture, str | os.PathLike):
        return open_user_file(picture, most=max_bytes, error=ImageError)
    if isinstance(picture, bytes | bytearray | memoryview):
        return _in_memory(picture, max_bytes)
    if hasattr(picture, "read"):
        return _in_memory(_from_open_file(picture, max_bytes), max_bytes)
    raise not_a_picture(picture)


def _in_memory(content: bytes | bytearray | memoryview, max_bytes: int) -> BinaryIO:
    if memoryview(content).nbytes > max_bytes:
        raise ImageError(f"picture of {memoryview(content).nbytes} bytes: expected at most {max_bytes:,}.")
    return io.BytesIO(content if isinstance(content, bytes) else bytes(content))


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    is_grey, is_colour = array.ndim == 2, array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype != np.uint8 or not (is_grey or is_colour) or not array.size:
        several = " Several pictures are a list of them." if array.ndim == 4 else ""
        raise ImageError(
            f"array of {array.dtype} {list(array.shape)}: expected uint8 [height, width, 3], [height, width] "
            f"or [height, width, 4].{several}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _from_open_file(file: Any, max_bytes: int) -> bytes:
    try:
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)  # as Pillow does: what was just written to a BytesIO is read, and twice too
        content = file.read(max_bytes + 1)
    except (OSError, ValueError, TypeError) as error:  # closed, or written only
        raise ImageError(f"{name_of(file)}: cannot be read ({error}).") from None
    if not isinstance(content, bytes | bytearray | memoryview):
        raise ImageError(f"{name_of(file)}: gives {type(content).__name__}; open it to read bytes ('rb').")
    if not content:
        raise ImageError(f"{name_of(file)}: nothing is left in it to read.")
    return bytes(content)


def _from_url(url: str, max_bytes: int, allow_url: bool | Fetch) -> bytes:
    if is_data_url(url):
        return read_data_url(url, max_bytes)
    if allow_url is False:
        raise refuse_url(url)
    if allow_url is True:
        from tinyllava_edge.picture_url import fetch_https  # ssl takes its time

        return fetch_https(url, max_bytes)
    try:
        content = allow_url(url)
    except Exception as error:  # the caller's function: whatever it raises
        raise ImageError(f"{name_of(url)}: not fetched ({type(error).__name__}: {error}).") from None
    if not isinstance(content, bytes | bytearray | memoryview):
        raise ImageError(f"{name_of(url)}: the function gave {type(content).__name__}, expected bytes.")
    return bytes(content)


def read_data_url(url: str, max_bytes: int) -> bytes:
    """What is in `data:image/...;base64,...`; its size is known before it is decoded.

    Raises:
        ImageError: it is of another form or type, no base64, or over `max_bytes`.
    """
    head = _DATA_URL.match(url[:210])
    kind, *rest = head[1].lower().split(";") if head else [""]
    if head is None or "base64" not in [word.strip() for word in rest]:
        raise ImageError("data URL: expected data:image/...;base64,...")
    if kind.strip() not in ("", "application/octet-stream") and not kind.strip().startswith("image/"):
        raise ImageError(f"data URL of type {kind.strip():.60}: expected image/...")
    if (len(url) - head.end()) * 3 // 4 > max_bytes * 1.05 + 1024:  # line ends and padding may be in it
        raise ImageError(f"data URL of {len(url):,} characters: expected at most {max_bytes:,} bytes.")
    encoded = url[head.end() :]
    encoded = "".join((unquote(encoded) if "%" in encoded else encoded).split())
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("data URL: what follows the comma is no base64.") from None
