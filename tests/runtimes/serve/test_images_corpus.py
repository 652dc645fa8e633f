"""Threat T6 by hand: pictures of every mode, shape and oddity, each opened or one 400 that leaks nothing.

`KnownPictures` as the server has it. No model.
"""

import base64
import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image, PngImagePlugin

from tests.runtimes.serve.serving import ROOT
from tests.runtimes.serve.test_campaign import LEAKS, fault_of
from tests.runtimes.serve.test_hostile import PNG_BOMB, chunk
from tinyllava_edge.runtimes.serve.images import KnownPictures

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
}
SHAPES = {(1, 1), (1, 300), (300, 1), (2, 3), (16_384, 2), (2, 16_384), (1000, 1000)}
TOO_LARGE = {(16_385, 1), (1, 20_000), (7000, 7000)}
OTHERS = ("TIFF", "PPM", "ICO", "TGA", "PCX", "EPS", "PDF", "SGI", "DDS", "JPEG2000", "ICNS", "MSP")


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def of(form: str, size: tuple[int, int] = (20, 10), mode: str = "RGB", **options: object) -> bytes:
    return saved(Image.new(mode, size), form, **options)


def taken() -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """Name, file and size of those that are opened."""
    for form, modes in MODES.items():
        for mode in modes:
            yield f"{form} of {mode}", of(form, mode=mode), (20, 10)
    for size in SHAPES:
        yield f"PNG of {size}", of("PNG", size), size
    exif = Image.Exif()
    for turn in range(1, 9):
        exif[0x0112] = turn
        size = (10, 20) if turn > 4 else (20, 10)
        yield f"JPEG turned as {turn}", of("JPEG", exif=exif.tobytes()), size
    exif[0x0112] = 99
    yield "JPEG turned as nothing", of("JPEG", exif=exif.tobytes()), (20, 10)
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "PNG"):
        yield f"animated {form}", saved(frames[0], form, save_all=True, append_images=frames[1:]), (20, 10)
    yield "progressive JPEG", of("JPEG", progressive=True), (20, 10)
    yield "interlaced by bytes behind", of("PNG") + b"PK\3\4" + bytes(100), (20, 10)
    yield "JPEG and a page behind", of("JPEG") + b"<script>alert(1)</script>", (20, 10)
    yield "GIF with a comment", of("GIF", comment=b"<script>alert(1)</script>"), (20, 10)
    yield "a profile that is none", of("PNG", icc_profile=b"\0" * 5000), (20, 10)
    yield "a JPEG's profile that is none", of("JPEG", icc_profile=b"x" * 60_000), (20, 10)
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", "x" * 100_000)
    yield "PNG with a long text", of("PNG", pnginfo=note), (20, 10)


def refused() -> Iterator[tuple[str, bytes]]:
    """Name and file of those that are 400."""
    for size in TOO_LARGE:
        yield f"PNG of {size}", of("PNG", size, "1")
    for form in OTHERS:
        yield form, of(form, (32, 32), "1" if form == "MSP" else "RGB")
    yield "bomb", PNG_BOMB
    whole = {form: of(form, (64, 64)) for form in MODES}
    for form, data in whole.items():
        yield f"half a {form}", data[: len(data) // 2]
        yield f"the head of a {form}", data[:12]
    head = b"\x89PNG\r\n\x1a\n"
    lies = (0, 0), (0, 5), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)
    for width, height in lies:
        yield (
            f"a PNG that says {width} x {height}",
            head + chunk(b"IHDR", struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""),
        )
    text = zlib.compress(b"x" * 20_000_000, 9)
    yield "a text that unpacks to 20 MB", head + chunk(b"zTXt", b"a\0\0" + text) + of("PNG")[8:]
    yield "empty", b""
    yield "FITS", b"SIMPLE  =                    T" + bytes(3000)
    yield "EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>'
    yield "a page", b"<!DOCTYPE html><html></html>"
    yield "a ZIP", b"PK\3\4" + bytes(100)
    yield "a program", b"\x7fELF" + bytes(100)


def as_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_pictures_of_every_kind_are_opened() -> None:
    found: list[Image.Image] = []
    for name, data, size in taken():
        fault = fault_of(lambda: found.append(KnownPictures().from_url(as_url(data), "x")[1]))  # noqa: B023
        assert fault is None, (name, fault)
        picture = found.pop()
        assert (picture.mode, picture.size) == ("RGB", size), name


def test_what_is_no_picture_of_ours_is_one_400() -> None:
    for name, data in refused():
        fault = fault_of(lambda: KnownPictures().from_url(as_url(data), "x"))  # noqa: B023
        assert fault is not None, name
        assert fault.status == 400, name
        assert not LEAKS.search(fault.message), name
        assert "\n" not in fault.message, name


def test_the_page_says_how_many_there_are() -> None:
    count = sum(1 for _ in taken()) + sum(1 for _ in refused())
    assert count >= 60
    assert f"{count} pictures by hand" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
