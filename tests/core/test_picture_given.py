"""Whatever one picture is given as, it is one, and the same pixels; anything else is one clear line."""

import base64
import io
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tinyllava_edge.errors import ImageError
from tinyllava_edge.image import open_picture
from tinyllava_edge.picture_given import is_picture, name_of
from tinyllava_edge.runtimes.pictures import as_pictures

CAT = Path(__file__).parents[1] / "fixtures" / "images" / "cat_231x153.png"
CONTENT = CAT.read_bytes()
PIXELS = np.asarray(Image.open(CAT).convert("RGB"))
ENCODED = base64.b64encode(CONTENT).decode()
URL = f"data:image/png;base64,{ENCODED}"


def just_written() -> io.BytesIO:
    """Its position is behind what was written."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file


def from_a_pipe() -> Any:
    """It cannot go back to its beginning."""
    reader, writer = socket.socketpair()
    with writer:
        writer.sendall(CONTENT)
    with reader:
        return reader.makefile("rb")


GIVEN: dict[str, Any] = {
    "path": CAT,
    "name": str(CAT),
    "bytes": CONTENT,
    "bytearray": bytearray(CONTENT),
    "memoryview": memoryview(CONTENT),
    "every second byte": memoryview(
        bytes(byte for pair in zip(CONTENT, CONTENT, strict=True) for byte in pair)
    )[::2],
    "BytesIO": io.BytesIO(CONTENT),
    "just written": just_written(),
    "array": PIXELS,
    "strided array": np.repeat(PIXELS, 2, axis=1)[:, ::2],
    "array with alpha": np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)]),
    "image": Image.open(CAT),
    "data URL": URL,
    "in capitals": f"DATA:IMAGE/PNG;BASE64,{ENCODED}",
    "without a type": f"data:;base64,{ENCODED}",
    "another type": f"data:image/jpeg;charset=utf-8;base64,{ENCODED}",
    "quoted": f"data:image/png;base64,{ENCODED.replace('+', '%2B').replace('/', '%2f').replace('=', '%3D')}",
    "in lines, unpadded": f"data:image/png;base64,{ENCODED[:76]}\r\n{ENCODED[76:].rstrip('=')}\n",
}


@pytest.mark.parametrize("name", GIVEN)
def test_it_is_one_picture_and_its_pixels(name: str) -> None:
    given = GIVEN[name]
    for shown in (as_pictures(given), as_pictures([given]), as_pictures(iter((given,)))):
        assert len(shown) == 1
        assert shown[0] is given
    for _ in range(2):  # a file is read from its beginning again
        np.testing.assert_array_equal(np.asarray(open_picture(given)), PIXELS)


def test_an_open_file_stays_open_and_a_pipe_is_read_once() -> None:
    with CAT.open("rb") as file:
        np.testing.assert_array_equal(np.asarray(open_picture(file)), PIXELS)
        assert not file.closed
    with from_a_pipe() as file:
        np.testing.assert_array_equal(np.asarray(open_picture(file)), PIXELS)
        with pytest.raises(ImageError, match="nothing is left in it"):
            open_picture(file)


def test_a_grey_array_is_grey() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (np.asarray(open_picture(grey)) == grey[..., None]).all()


def closed() -> io.BytesIO:
    file = io.BytesIO(CONTENT)
    file.close()
    return file


WRONG = {
    "float array": (np.zeros((4, 4, 3)), "array of float64 [4, 4, 3]: expected uint8 [height, width, 3]"),
    "channels first": (np.zeros((3, 4, 5), np.uint8), "array of uint8 [3, 4, 5]: expected uint8"),
    "several": (np.zeros((2, 4, 4, 3), np.uint8), "Several pictures are a list of them."),
    "empty array": (np.zeros((0, 4, 3), np.uint8), "[0, 4, 3]"),
    "16 bits": (np.zeros((4, 4), np.uint16), "array of uint16"),
    "text file": (io.StringIO("x"), "open it to read bytes"),
    "closed file": (closed(), "closed file"),
    "empty file": (io.BytesIO(), "nothing is left in it to read"),
    "no base64": ("data:image/png;base64,!!!!", "no base64"),
    "not base64": ("data:image/png,%89PNG", "expected data:image/...;base64,..."),
    "no comma": ("data:image/png;base64", "expected data:image/...;base64,..."),
    "a page": (f"data:text/html;base64,{ENCODED}", "of type text/html: expected image/..."),
    "no picture": ("data:image/png;base64,aGVsbG8=", "not a picture in one of"),
    "URL": ("https://example.com/a.png?key=secret", "https://example.com/a.png: nothing is fetched unless"),
    "plain URL": ("http://example.com/a.png", "nothing is fetched unless"),
    "number": (7, "int is no picture: expected a path, a data or https URL"),
    "dict": ({"a": 1}, "dict is no picture"),
    "None": (None, "NoneType is no picture"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_thing_is_one_line(name: str) -> None:
    given, message = WRONG[name]
    with pytest.raises(ImageError) as error:
        open_picture(given)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("given", [7, {"a": 1}, {1, 2}, object(), 1.5])
def test_what_is_neither_one_picture_nor_several_is_refused(given: Any) -> None:
    assert not is_picture(given)
    with pytest.raises(ImageError, match="is no picture: expected a path"):
        as_pictures(given)
    with pytest.raises(ImageError, match=r"pictures\[1\] is of type"):
        as_pictures([CAT, given])


def test_what_is_too_large_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    most = len(CONTENT)
    fits = (CAT, CONTENT, bytearray(CONTENT), memoryview(CONTENT), io.BytesIO(CONTENT), URL)
    for given in fits:
        assert open_picture(given, max_bytes=most).size == (231, 153)
        with pytest.raises(ImageError, match=f"expected at most {most - 1:,}"):
            open_picture(given, max_bytes=most - 1)
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"data URL of .* characters: expected at most 1,000 bytes"):
        open_picture(URL, max_bytes=1000)


def test_a_function_fetches_where_one_is_given() -> None:
    asked = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        if "broken" in url:
            raise RuntimeError("no way")
        return CONTENT if "cat" in url else "text"  # type: ignore[return-value]

    assert open_picture("https://host/cat?a=1", allow_url=fetch).size == (231, 153)
    assert asked == ["https://host/cat?a=1"]
    with pytest.raises(ImageError, match=r"https://host/broken: not fetched \(RuntimeError: no way\)"):
        open_picture("https://host/broken?k=v", allow_url=fetch)
    with pytest.raises(ImageError, match="the function gave str, expected bytes"):
        open_picture("https://host/page", allow_url=fetch)
    with pytest.raises(ImageError, match="expected at most 10"):
        open_picture("https://host/cat", allow_url=fetch, max_bytes=10)


def test_a_path_is_a_path_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.link(CAT, "data:x")
    assert open_picture(Path("data:x")).size == (231, 153)
    assert name_of(Path("data:x")) == "data:x"
