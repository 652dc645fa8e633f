"""Opening pictures: every kind of file has one outcome, an RGB picture or an ImageError."""

import io
import os
import re
import resource
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.golden import shared_fixtures
from tinyllava_edge.errors import ImageError
from tinyllava_edge.image import open_picture

CAT = shared_fixtures() / "images" / "cat_231x153.png"
CORNERS = {(0, 0): (255, 0, 0), (1, 0): (0, 255, 0), (0, 1): (0, 0, 255), (1, 1): (255, 255, 255)}


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def four_corners() -> Image.Image:
    """Red, green / blue, white, in blocks of 8 so that JPEG keeps them."""
    image = Image.new("RGB", (2, 2))
    for place, colour in CORNERS.items():
        image.putpixel(place, colour)
    return image.resize((32, 16), Image.Resampling.NEAREST)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(2000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@contextmanager
def little_memory(extra: int) -> Iterator[None]:
    """Let this process grow by `extra` bytes only."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def assert_refused(picture: Any, expected: str) -> None:
    with pytest.raises(ImageError, match=expected) as caught:
        open_picture(picture)
    message = str(caught.value)
    assert not re.search(r"0x[0-9a-f]{6}|Traceback|\n", message), message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# EXIF orientation n: where the file's top left, top right, bottom left and bottom right corner end up
# (EXIF 2.32, table of tag 0x0112).
@pytest.mark.parametrize(
    ("orientation", "shown"),
    [(1, "RGBW"), (2, "GRWB"), (3, "WBGR"), (4, "BWRG"), (5, "RBGW"), (6, "BRWG"), (7, "WGBR"), (8, "GWRB")],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_exif_orientation_of_a_file_is_applied(orientation: int, shown: str, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_picture(encoded(four_corners(), format, exif=exif))
    assert image.size == ((32, 16) if orientation < 5 else (16, 32))
    found = ""
    for y in (2, image.height - 3):
        for x in (2, image.width - 3):
            red, green, blue = (value > 128 for value in image.getpixel((x, y)))  # type: ignore[union-attr]
            found += {(1, 0, 0): "R", (0, 1, 0): "G", (0, 0, 1): "B", (1, 1, 1): "W"}[red, green, blue]
    assert found == shown


def test_a_pillow_image_is_taken_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(four_corners(), "PNG", exif=exif)))
    assert open_picture(image).size == (32, 16)
    assert ImageOps.exif_transpose(image).size == (16, 32)


def test_a_path_its_text_and_its_bytes_are_the_same_picture() -> None:
    pictures = [open_picture(given).tobytes() for given in (CAT, str(CAT), CAT.read_bytes(), Image.open(CAT))]
    assert pictures == [Image.open(CAT).convert("RGB").tobytes()] * 4


def test_alpha_is_dropped_not_composited() -> None:
    rgba = Image.new("RGBA", (4, 4), (10, 200, 30, 0))
    assert open_picture(encoded(rgba, "PNG")).getpixel((1, 1)) == (10, 200, 30)
    assert open_picture(encoded(rgba.convert("LA"), "PNG")).mode == "RGB"
    grey_alpha = Image.new("LA", (4, 4), (77, 0))
    assert open_picture(encoded(grey_alpha, "PNG")).getpixel((1, 1)) == (77, 77, 77)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 50, 60, 70])
    for transparency in (1, b"\xff\x00"):
        data = encoded(palette, "PNG", transparency=transparency)
        assert open_picture(data).getpixel((1, 1)) == (50, 60, 70)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames") == 3  # noqa: B009 - not in Image's type
    assert open_picture(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(("stored", "shown"), [(0, 0), (255, 0), (256, 1), (0x7FFF, 0x7F), (0xFFFF, 255)])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(stored: int, shown: int, format: str) -> None:
    image = Image.fromarray(np.full((4, 4), stored, dtype=np.uint16))
    assert open_picture(encoded(image, format)).getpixel((1, 1)) == (shown, shown, shown)
    assert open_picture(image).getpixel((1, 1)) == (shown, shown, shown)


@pytest.mark.parametrize("outside", [-5, 70_000])
def test_whole_numbers_of_32_bits_are_of_16_or_refused(outside: int) -> None:
    values = np.array([[0, 0x8000, 0xFFFF]], dtype=np.int32)
    data = encoded(Image.fromarray(values), "TIFF")
    assert np.asarray(open_picture(data))[0, :, 0].tolist() == [0, 128, 255]
    values[0, 0] = outside
    with pytest.raises(ImageError, match=f"grey from .*{abs(outside)}"):
        open_picture(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGB"])
def test_other_modes_become_rgb(mode: str) -> None:
    white = Image.new("RGB", (16, 16), "white").convert(mode)
    format = "PNG" if mode in ("1", "P") else "JPEG"
    image = open_picture(encoded(white, format))
    assert image.mode == "RGB"
    assert min(image.getpixel((3, 3))) > 250  # type: ignore[arg-type]


def test_a_picture_of_one_pixel_works() -> None:
    assert open_picture(encoded(Image.new("RGB", (1, 1), "red"), "PNG")).getpixel((0, 0)) == (255, 0, 0)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("just some text")
    empty = tmp_path / "empty.png"
    empty.touch()
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert_refused(text, r"notes.jpg: not a picture in one of JPEG, PNG")
    assert_refused(empty, "empty.png: not a picture")
    assert_refused(b"", "picture of 0 bytes: not a picture")
    assert_refused(tmp_path, "cannot be read: not a file")
    assert_refused(pipe, "pipe.png: cannot be read: not a file")
    assert_refused("/dev/zero", "/dev/zero: cannot be read: not a file")
    assert_refused(tmp_path / "absent.png", "absent.png: cannot be read: no such file")
    assert_refused("nul\0byte.png", "no such file")
    assert_refused("x" * 5000, "cannot be read")
    assert_refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
@pytest.mark.parametrize("kept", [1, 4, 30, 0.25, 0.5, 0.9])
def test_a_truncated_picture_is_refused(format: str, kept: float) -> None:
    data = encoded(Image.open(CAT).convert("RGB"), format)
    length = kept if kept >= 1 else len(data) * kept
    assert_refused(data[: int(length)], "not a picture|damaged picture")


def test_a_truncated_pillow_image_is_refused_too() -> None:
    assert_refused(Image.open(io.BytesIO(CAT.read_bytes()[:20_000])), "picture: damaged picture")


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (6400, 6407, "6400x6407 pixels; the limits are 16384 a side and 40 megapixels, "),  # 41 megapixels
        (16385, 1, "16385x1 pixels"),
        (1, 16385, "1x16385 pixels"),
        (30000, 30000, "far too many pixels"),
        (2**31 - 1, 2**31 - 1, "far too many pixels"),
        (0, 5, "0x5 pixels|not a picture|damaged"),
    ],
)
def test_a_picture_over_the_limits_is_refused_before_it_is_decoded(
    width: int, height: int, expected: str
) -> None:
    data = png_header(width, height)
    assert len(data) < 4096
    started = time.process_time()
    with little_memory(64 << 20):  # decoding the smallest of them would take 160 MB
        assert_refused(data, expected)
    assert time.process_time() - started < 1


def test_a_pillow_image_over_the_limits_is_refused_too() -> None:
    assert_refused(Image.new("1", (16385, 1)), "picture: 16385x1 pixels")


def test_a_picture_at_the_limit_is_opened() -> None:
    assert open_picture(encoded(Image.new("1", (16384, 2)), "PNG")).size == (16384, 2)


SEEDS = {
    format: encoded(Image.open(CAT).convert("RGB").resize((40, 30)), format)
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
}


@given(
    format=st.sampled_from(sorted(SEEDS)),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=6),
    near_start=st.booleans(),
    kept=st.floats(0.2, 1),
)
def test_a_damaged_file_is_a_picture_or_an_image_error(
    format: str, edits: list[tuple[float, bytes]], near_start: bool, kept: float
) -> None:
    data = bytearray(SEEDS[format])
    span = min(len(data), 120) if near_start else len(data)  # headers are where parsers break
    for place, value in edits:
        start = int(place * (span - 1))
        data[start : start + len(value)] = value
    try:
        image = open_picture(bytes(data[: int(len(data) * kept)]))
    except ImageError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert image.mode == "RGB"


def test_a_transparent_ground_is_white_where_that_is_asked_for_and_dropped_elsewhere() -> None:
    for mode, clear in (("RGBA", (9, 9, 9, 0)), ("LA", (9, 0))):
        image = Image.new(mode, (4, 4), clear)
        assert open_picture(image, on_white=True).getpixel((0, 0)) == (255, 255, 255)
        assert open_picture(image).getpixel((0, 0)) == (9, 9, 9)
    assert open_picture(CAT, on_white=True).tobytes() == open_picture(CAT).tobytes()
