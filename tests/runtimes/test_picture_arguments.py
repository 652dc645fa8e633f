"""Pictures on a command line, for who wants what is in one, or a file for other processes. No model."""

import base64
import io
import sys
from pathlib import Path

import pytest

from tinyllava_edge.errors import ImageError, UsageError
from tinyllava_edge.runtimes.picture_arguments import picture_content, picture_file

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "emoji.webp"
CONTENT = PICTURE.read_bytes()
DATA_URL = f"data:image/webp;base64,{base64.b64encode(CONTENT).decode()}"


def send(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize("given", [str(PICTURE), DATA_URL, "-"])
def test_a_picture_is_given_in_every_form(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    send(monkeypatch, CONTENT)
    assert picture_content(given) == CONTENT
    send(monkeypatch, CONTENT)
    with picture_file(given) as file:
        assert file.read_bytes() == CONTENT
    assert file.exists() == (given == str(PICTURE)), "what was made for it is gone"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("https://example.org/a.png", "--allow-url"),
        ("data:text/plain;base64,aGk=", "expected image"),
        (f"data:image/png;base64,{base64.b64encode(b'no picture').decode()}", "picture of 10 bytes"),
        (__file__, "test_picture_arguments.py"),
        ("absent.png", "absent.png"),
    ],
)
def test_what_is_none_is_refused_in_both(given: str, said: str) -> None:
    for read in (picture_content, lambda text: picture_file(text).__enter__()):
        with pytest.raises(ImageError, match=said):
            read(given)


def test_an_empty_standard_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    send(monkeypatch, b"")
    with pytest.raises(UsageError, match="standard input"):
        picture_content("-")
