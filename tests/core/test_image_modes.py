"""Every kind of pixel that a file or Pillow can hold: a conversion that docs/bundle.md names, or an error."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyllava_edge.errors import ImageError
from tinyllava_edge.image import open_picture

COLOUR = (200, 100, 40)
RAMP = np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def deep(top: int, mode: str = "I;16") -> Image.Image:
    values = np.linspace(0, top, 64).reshape(8, 8).astype(np.uint16)
    return Image.frombytes(mode, (8, 8), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV"])
def test_colour_of_any_mode_stays_that_colour(mode: str) -> None:
    source = Image.new("RGB", (8, 8), COLOUR)
    if mode in ("P", "PA"):
        source = source.convert("P", palette=Image.Palette.ADAPTIVE)
    found = np.asarray(open_picture(source.convert(mode)), dtype=int)
    assert np.abs(found - np.asarray(source.convert("RGB"), dtype=int)).max() <= 5


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_of_any_mode_stays_that_grey(mode: str) -> None:
    source = Image.fromarray(RAMP).convert(mode)
    assert np.array_equal(np.asarray(open_picture(source))[..., 1], np.asarray(source.convert("L")))


@pytest.mark.parametrize(("mode", "straight"), [("La", "LA"), ("RGBa", "RGBA")])
def test_a_colour_multiplied_by_alpha_is_divided_again(mode: str, straight: str) -> None:
    value = (200, 128) if straight == "LA" else (*COLOUR, 128)
    source = Image.new(straight, (4, 4), value)
    found = open_picture(source.convert(mode))
    assert np.abs(np.asarray(found, int) - np.asarray(source.convert("RGB"), int)).max() <= 2
    on_white = np.asarray(open_picture(source.convert(mode), on_white=True), int)
    assert np.abs(on_white - np.asarray(open_picture(source, on_white=True), int)).max() <= 2


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N"])
def test_the_upper_byte_of_16_bits_counts(mode: str) -> None:
    expected = np.asarray(deep(65535)) // 256
    assert np.array_equal(np.asarray(open_picture(deep(65535, mode)))[..., 0], expected)
    assert np.array_equal(np.asarray(open_picture(deep(65535, mode), on_white=True))[..., 0], expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_fewer_bits_in_a_file_of_16_are_refused_and_never_dark(kind: str, bits: int) -> None:
    for open_ in (open_picture, partial(open_picture, on_white=True)):
        with pytest.raises(ImageError, match=r"16-bit pixels, none over .* of 65535"):
            open_(saved(deep((1 << bits) - 1), kind))
        assert np.asarray(open_(saved(deep(65535), kind))).max() == 255


def png_of_16_bit_colour(top: int) -> bytes:
    """Two pixels, written by hand: Pillow writes no such file."""
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    rows = b"\0" + struct.pack(">6H", 0, top // 2, top, top, 0, top // 4)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_colour_of_16_bits_is_read_alike() -> None:
    found = np.asarray(open_picture(png_of_16_bit_colour(0xFFFF)))
    assert found.tolist() == [[[0, 127, 255], [255, 0, 63]]]
    with pytest.raises(ImageError, match="16-bit pixels, none over 4095 of 65535"):
        open_picture(png_of_16_bit_colour(0x0FFF))


def tiff_of_12_bits() -> bytes:
    """Grey of 12 bits, packed, that says so: two values in three bytes."""
    import struct

    pixels = bytes((0xFF, 0xF8, 0x00)) * 4  # 4095, 2048 in each pair
    entries = [(256, 4, 2), (257, 4, 4), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 4, 4), (279, 4, len(pixels))]
    table = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in entries
    )
    directory = struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def test_a_tiff_that_says_it_has_12_bits_is_as_light_as_it_is() -> None:
    found = np.asarray(open_picture(tiff_of_12_bits()))[..., 0]
    assert found.tolist() == [[255, 128]] * 4


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_values_without_a_known_range_are_refused(mode: str, tmp_path: Path) -> None:
    source = Image.new(mode, (4, 4), 3 if mode != "LAB" else (50, 3, 3))
    source.save(tmp_path / "a.tif")
    for picture in (source, tmp_path / "a.tif"):
        with pytest.raises(ImageError, match=rf"pixels of mode {mode}: .* Save it as 8-bit RGB"):
            open_picture(picture)


def test_grey_of_16_bits_in_which_white_is_0_is_refused() -> None:
    with pytest.raises(ImageError, match="white is 0"):
        open_picture(saved(deep(65535), "TIFF", tiffinfo={262: 0}))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert open_picture(content).getpixel((4, 4)) == (255, 0, 0)


def test_a_cmyk_jpeg_of_adobe_is_not_inverted() -> None:
    found = np.asarray(open_picture(saved(Image.new("CMYK", (16, 16), (0, 200, 200, 0)), "JPEG")), int)
    assert np.abs(found - (255, 55, 55)).max() <= 6


def test_transparency_of_palette_and_grey_is_dropped_or_white() -> None:
    palette = Image.new("RGB", (8, 8), COLOUR).convert("P", palette=Image.Palette.ADAPTIVE)
    files = [saved(palette, "PNG", transparency=palette.getpixel((0, 0)))]
    files.append(saved(Image.new("L", (8, 8), 90), "PNG", transparency=90))
    for content, colour in zip(files, (COLOUR, (90, 90, 90)), strict=True):
        assert open_picture(content).getpixel((0, 0)) == colour
        assert open_picture(content, on_white=True).getpixel((0, 0)) == (255, 255, 255)
