"""Which parser reads a picture's file, how much of it is decoded, and for how long."""

import threading
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import BinaryIO, TypeVar

from PIL import Image, features

from tinyllava_edge.errors import ImageError

# Formats read from files. Others (EPS, FITS, ...) have parsers that are not worth their risk. HEIF is read
# besides, where its package is installed.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 40_000_000  # decoded
MAX_JPEG_PIXELS = 120_000_000  # of a file; decoded at half its sides
MAX_SIDE = 16_384
_SHRINKS = ("JPEG", "MPO")  # MPO: a JPEG with more pictures behind it, as phones write
_LIMITS = (
    f"the limits are {MAX_SIDE} a side and {MAX_PIXELS // 1_000_000} megapixels, "
    f"{MAX_JPEG_PIXELS // 1_000_000} of a JPEG"
)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_BLOCK_BYTES = 1 << 14  # read at a time where the clock runs
Result = TypeVar("Result")


def open_format(file: BinaryIO) -> Image.Image:
    """Read the header of a picture's file.

    Raises:
        ImageError: this machine lacks the decoder of its format; the message has the line that installs it.
        OSError: or what else Pillow's parsers raise: it is no picture.
    """
    brands = _brands(file.read(64))
    file.seek(0)
    if brands & _AVIF_BRANDS:
        if not features.check("avif"):
            from tinyllava_edge.install import pip

            raise ImageError(f"AVIF, which this Pillow cannot decode: {pip('install')} --upgrade pillow")
    elif brands & _HEIC_BRANDS:
        _register_heif()
        return Image.open(file, formats=("HEIF",))
    return Image.open(file, formats=FORMATS)


def _brands(head: bytes) -> set[bytes]:
    """What an ISO media file says it is, the first of all kinds first (ISO/IEC 14496-12, `ftyp`)."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[start : start + 4] for start in range(16, end, 4))}


def _register_heif() -> None:
    if find_spec("pillow_heif") is None:
        from tinyllava_edge.install import pip

        raise ImageError(f"HEIC, whose decoder is not installed: {pip('install')} pillow-heif")
    import_module("pillow_heif").register_heif_opener(thumbnails=False)


def fit(image: Image.Image, *, shrink: bool = True) -> None:
    """Refuse a picture over the limits before it is decoded; a JPEG is set to be decoded at half its sides.

    Args:
        image: not decoded yet.
        shrink: whether it may be set so.

    Raises:
        ImageError: it is over the limits.
    """
    width, height = image.size
    if 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE:
        if width * height <= MAX_PIXELS:
            return
        if shrink and width * height <= MAX_JPEG_PIXELS and image.format in _SHRINKS:
            image.draft(None, (width // 2, height // 2))
            if image.width * image.height <= MAX_PIXELS:
                return
    raise ImageError(f"{width}x{height} pixels; {_LIMITS}. Make it smaller first.")


def far_too_large() -> ImageError:
    """What is said where not even the header is read."""
    return ImageError(f"far too many pixels; {_LIMITS}.")


class WatchedFile:
    """A file that cannot be read behind a deadline, so that decoding it ends there."""

    def __init__(self, file: BinaryIO, ends_at: float) -> None:
        self._file, self._ends_at = file, ends_at
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        """Read on.

        Raises:
            ImageError: the deadline has passed.
        """
        if time.monotonic() > self._ends_at:
            raise ImageError("the time to decode it is over.")
        return self._file.read(size)


def within(deadline_s: float, decode: Callable[[], Result]) -> Result:
    """What `decode` returns or raises, or an error at the deadline.

    The thread of a decoder that reads its whole file before (WebP, AVIF, TIFF, HEIC) goes on unheard until it
    is done, which the limits of pixels bound. Others end with the next block of a `WatchedFile`.

    Raises:
        ImageError: the deadline has passed.
    """
    outcome: list[tuple[Result | None, BaseException | None]] = []

    def work() -> None:
        try:
            outcome.append((decode(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=work, name="decode a picture", daemon=True)
    thread.start()
    thread.join(deadline_s)
    if not outcome:
        raise ImageError(f"not decoded within {deadline_s:g} s. Send a smaller or simpler picture.")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def block_by_block(image: Image.Image) -> None:
    """Let a decoder read little at a time, so that it sees the deadline."""
    if hasattr(image, "decodermaxblock"):
        image.decodermaxblock = _BLOCK_BYTES
