"""Pictures on a command line: a path, a URL, `-` for standard input, or a folder of them."""

import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from tinyllava_edge.errors import FileError, ImageError, UsageError
from tinyllava_edge.image import MAX_FILE_BYTES, open_picture
from tinyllava_edge.picture_given import Picture, as_file, is_data_url, is_url, refuse_url
from tinyllava_edge.user_files import read_user_file

STDIN = "-"
ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"),
)


def picture_argument(text: str) -> Picture:
    """What an argument names: itself, or what stands on standard input.

    Raises:
        UsageError: standard input is a terminal, empty, or over the limit of a file.
    """
    if text != STDIN:
        return text
    if sys.stdin.isatty():
        raise UsageError("standard input is a terminal. Send a picture: ... - < photo.jpg")
    content: bytes = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if not 0 < len(content) <= MAX_FILE_BYTES:
        found = "more" if content else "nothing"
        raise UsageError(
            f"standard input: expected a picture of at most {MAX_FILE_BYTES:,} bytes, found {found}."
        )
    return content


def picture_content(text: str, *, allow_url: bool = False) -> bytes:
    """What is in the file of the picture that an argument names; it is a picture.

    Raises:
        ImageError: it is none, cannot be read, or may not or cannot be fetched.
        UsageError: as `picture_argument`.
    """
    given = picture_argument(text)
    if is_url(given):
        file = as_file(given, max_bytes=MAX_FILE_BYTES, allow_url=allow_url)
        assert not isinstance(file, Image.Image), "a URL is what is in a file"
        given = file.read()
    open_picture(given)  # one that cannot be used is refused by its name
    return given if isinstance(given, bytes) else read_user_file(text, error=ImageError)


@contextmanager
def picture_file(text: str, *, allow_url: bool = False) -> Iterator[Path]:
    """The file of the picture that an argument names, for other processes; `Raises` as `picture_content`."""
    if text != STDIN and not is_url(text):
        open_picture(text)
        yield Path(text)
        return
    with tempfile.TemporaryDirectory(prefix="tinyllava-edge-") as folder:
        file = Path(folder, "picture")
        file.write_bytes(picture_content(text, allow_url=allow_url))
        yield file


def picture_paths(arguments: list[str], *, recursive: bool = False, allow_url: bool = False) -> list[str]:
    """Arguments with the pictures of each folder in its place.

    Raises:
        ImageError: one is an URL, and none is to be fetched.
        FileError: one is no file, or a folder without pictures.
        UsageError: `-` is there twice.
    """
    if arguments.count(STDIN) > 1:
        raise UsageError("- stands there twice, but standard input is one picture.")
    found: list[str] = []
    for argument in arguments:
        if argument == STDIN or is_url(argument):
            if not (allow_url or argument == STDIN or is_data_url(argument)):
                raise refuse_url(argument)
            found.append(argument)
        elif os.path.isdir(argument):
            found += folder_pictures(argument, recursive=recursive)
        else:
            _check_file(argument)
            found.append(argument)
    return found


def folder_pictures(folder: str, *, recursive: bool = False) -> list[str]:
    """The pictures of a folder by their names' endings, hidden ones left out: 2.jpg comes before 10.jpg.

    Raises:
        FileError: there are none, or the folder cannot be read.
    """
    found = sorted(_files(folder, recursive), key=natural_order)
    if not found:
        below = "" if recursive else " --recursive looks into its folders, too."
        raise FileError(f"{folder}: no picture in this folder, by the endings of names.{below}")
    return found


def natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A key that sorts names as people count: by their numbers, whatever the case of letters."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def _files(folder: str, recursive: bool) -> Iterator[str]:
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in ENDINGS:
                yield os.path.join(place, name)


def _check_file(path: str) -> None:
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
        reason = "not a file"
    except (OSError, ValueError) as error:
        is_file, reason = False, str(getattr(error, "strerror", None) or error)
    if not is_file:
        raise FileError(f"{path}: cannot be read: {reason}. Give pictures, folders, URLs, or - for stdin.")


def _raise(error: OSError) -> None:
    raise error
