"""Formats beyond the web's, large JPEGs decoded at half their sides, limits for what strangers send."""

import io
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.core.test_image_files import CAT, assert_refused, encoded, png_header
from tinyllava_edge import picture_formats
from tinyllava_edge.errors import ImageError
from tinyllava_edge.image import Preprocessing, open_picture, preprocess

CAT_RGB = Image.open(CAT).convert("RGB")


def how(**changes: Any) -> Preprocessing:
    half = (0.5, 0.5, 0.5)
    values: dict[str, Any] = {"aspect": "square", "resize": "stretch", "size": 384, "crop": None, **changes}
    return Preprocessing(**values, resample=3, rescale_factor=1 / 255, mean=half, std=half)


def photo(width: int, height: int, noise: int) -> Image.Image:
    """Soft shapes with the grain of a sensor."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
    grain = Image.fromarray(rng.integers(0, noise + 1, (1024, 1024, 3), dtype=np.uint8))
    whole = np.asarray(soft) // 2 + np.resize(np.asarray(grain), (height, width, 3))
    return Image.fromarray(whole.astype(np.uint8))


def test_ppm_is_read_in_all_its_kinds() -> None:
    assert open_picture(encoded(CAT_RGB, "PPM")).tobytes() == CAT_RGB.tobytes()
    for mode in ("L", "1"):
        grey = CAT_RGB.convert(mode)
        assert open_picture(encoded(grey, "PPM")).tobytes() == grey.convert("RGB").tobytes()
    ten_bits = b"P5 2 1 1023\n" + np.array([0, 1023], dtype=">u2").tobytes()
    assert np.asarray(open_picture(ten_bits))[0, :, 0].tolist() == [0, 255]
    assert np.asarray(open_picture(b"P3\n# a robot's\n1 1 255\n9 8 7\n")).tolist() == [[[9, 8, 7]]]
    assert_refused(b"Pf\n1 1\n-1.0\n" + bytes(4), "pixels of mode F")


def test_avif_is_read_and_refused_with_the_mend_where_pillow_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(CAT_RGB, "AVIF", quality=95)
    found = np.asarray(open_picture(data), dtype=int)
    assert np.abs(found - np.asarray(CAT_RGB, dtype=int)).mean() < 3
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    assert_refused(data, r"AVIF, which this Pillow cannot decode: .*pip install --upgrade pillow")


# The start of a file as an iPhone writes it: ISO/IEC 23008-12, brand `heic`.
HEIC_START = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def test_heic_is_refused_with_the_line_that_installs_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_formats, "find_spec", lambda name: None)
    assert_refused(HEIC_START, r"HEIC, whose decoder is not installed: .*pip install pillow-heif$")


def test_heic_goes_to_its_package_where_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself is not installed here: a stand-in opens a file that says it is HEIC as one."""
    module = ModuleType("pillow_heif")

    def register_heif_opener(**options: Any) -> None:
        Image.register_open("HEIF", lambda file, name: CAT_RGB, lambda start: start[8:12] == b"heic")  # type: ignore[arg-type,return-value]

    module.register_heif_opener = register_heif_opener  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    monkeypatch.setattr(picture_formats, "find_spec", lambda name: module)
    try:
        assert open_picture(HEIC_START).tobytes() == CAT_RGB.tobytes()
    finally:
        Image.OPEN.pop("HEIF")


def test_a_real_heic_is_read() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    pillow_heif.register_heif_opener()
    data = encoded(CAT_RGB, "HEIF", quality=95)
    found = np.asarray(open_picture(data), dtype=int)
    assert np.abs(found - np.asarray(CAT_RGB, dtype=int)).mean() < 3


def test_a_jpeg_of_48_megapixels_is_decoded_at_half_its_sides_and_changes_no_pixel_much() -> None:
    picture = photo(8000, 6000, noise=40)
    data = encoded(picture, "JPEG", quality=90)
    half = open_picture(data)
    assert half.size == (4000, 3000)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    for preprocessing in (how(), how(resize="shortest_edge", size=336, crop=336)):
        difference = np.abs(preprocess(half, preprocessing) - preprocess(whole, preprocessing)) * 127.5
        assert difference.max() <= 2.01  # of 255; docs/bundle.md has it
        assert difference.mean() <= 0.2
    del whole
    assert_refused(data[: len(data) * 9 // 10], "damaged picture")


def test_the_orientation_of_a_shrunk_jpeg_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_formats, "MAX_PIXELS", 400_000)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = open_picture(encoded(photo(1000, 601, noise=9), "JPEG", exif=exif))
    assert found.size == (301, 500)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_any_kind_of_jpeg_shrinks(
    monkeypatch: pytest.MonkeyPatch, mode: str, options: dict[str, Any]
) -> None:
    data = encoded(photo(1000, 600, noise=9).convert(mode), "JPEG", quality=95, **options)
    whole = np.asarray(open_picture(data).resize((500, 300), Image.Resampling.BOX), dtype=int)
    monkeypatch.setattr(picture_formats, "MAX_PIXELS", 400_000)
    found = np.asarray(open_picture(data), dtype=int)
    assert found.shape == (300, 500, 3)
    assert np.abs(found - whole).mean() < 2


def test_a_phones_jpeg_with_more_pictures_behind_it_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_formats, "MAX_PIXELS", 400_000)
    picture = photo(1000, 600, noise=9)
    data = encoded(picture, "MPO", save_all=True, append_images=[picture.resize((50, 30))])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert open_picture(data).size == (500, 300)


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG that claims a size: its frame header (ITU T.81, SOF0) holds height and width."""
    data = encoded(Image.new("RGB", (16, 16)), "JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[place + 4 :]


def test_other_formats_and_larger_jpegs_keep_their_limit() -> None:
    said = "the limits are 16384 a side and 40 megapixels, 120 of a JPEG"
    assert_refused(png_header(8000, 6000), f"8000x6000 pixels; {said}")
    assert_refused(jpeg_of_size(12001, 10000), f"12001x10000 pixels; {said}")
    assert_refused(jpeg_of_size(16385, 3000), f"16385x3000 pixels; {said}")


def test_more_bytes_than_allowed_are_refused(tmp_path: Path) -> None:
    data = encoded(CAT_RGB, "PNG")
    path = tmp_path / "cat.png"
    path.write_bytes(data)
    for picture in (data, path):
        assert open_picture(picture, max_bytes=len(data)).size == CAT_RGB.size
        with pytest.raises(ImageError, match=f"expected at most {len(data) - 1:,}"):
            open_picture(picture, max_bytes=len(data) - 1)


def test_a_picture_is_the_same_with_a_deadline_and_its_errors_too() -> None:
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"):
        data = encoded(CAT_RGB, format)
        assert open_picture(data, deadline_s=60).tobytes() == open_picture(data).tobytes(), format
    with pytest.raises(ImageError, match="picture of 5 bytes: not a picture"):
        open_picture(b"hello", deadline_s=60)
    with pytest.raises(ImageError, match="damaged picture"):
        open_picture(encoded(CAT_RGB, "PNG")[:9000], deadline_s=60)


def test_decoding_ends_at_the_deadline_and_so_does_its_thread() -> None:
    slow = b"P3 1000 1000 255\n" + b"1 2 3\n" * 1_000_000  # numbers as text, which Pillow reads one by one
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"picture of 6000017 bytes: not decoded within 0\.1 s"):
        open_picture(slow, deadline_s=0.1)
    assert time.monotonic() - started < 1
    ours = [thread for thread in threading.enumerate() if thread.name == "decode a picture"]
    for thread in ours:
        thread.join(2)
    assert not any(thread.is_alive() for thread in ours)
