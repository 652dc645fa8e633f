"""Pictures nobody asks about: what of a folder is taken, and how it is laid on white."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from examples.nano.unlabelled import read_unlabelled
from tinyllava_edge.errors import DataError


def _drawing(box: tuple[int, int, int, int], colour: str = "red") -> Image.Image:
    """An ellipse on nothing: black below, as graphics programs leave it."""
    image = Image.new("RGBA", (200, 100), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse(box, fill=colour)
    return image


def test_a_drawing_is_cut_to_its_ink_and_lies_in_the_middle_of_a_white_square(tmp_path: Path) -> None:
    _drawing((120, 10, 160, 30)).save(tmp_path / "small.png")
    pixels = read_unlabelled([tmp_path], 32)
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert pixels[0, :, [0, 0, 31, 31], [0, 31, 0, 31]].eq(255).all()
    ink = (pixels[0] < 128).any(0)
    rows, columns = ink.any(1).nonzero(), ink.any(0).nonzero()
    assert (int(columns.min()), int(columns.max())) == (2, 29)
    assert abs(int(rows.min()) + int(rows.max()) - 31) <= 1
    assert pixels[0, :, 16, 16].tolist() == [255, 0, 0]


def test_repetitions_lines_and_empty_sheets_are_left_out_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    _drawing((10, 10, 90, 90)).save(tmp_path / "a.png")
    _drawing((60, 10, 140, 90)).save(tmp_path / "deeper" / "the same elsewhere.PNG")
    _drawing((10, 10, 90, 90), "blue").save(tmp_path / "deeper" / "b.png")
    _drawing((10, 10, 190, 20)).save(tmp_path / "line.png")
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(tmp_path / "nothing.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    pixels = read_unlabelled([tmp_path], 32)
    assert pixels[:, :, 16, 16].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_no_folder_is_no_picture() -> None:
    assert read_unlabelled([], 32).shape == (0, 3, 32, 32)


def test_a_damaged_picture_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    _drawing((10, 10, 90, 90)).save(tmp_path / "whole.png")
    assert len(read_unlabelled([tmp_path], 32)) == 1
    said = capsys.readouterr().err
    assert "left out 1 of 2 pictures" in said
    assert "damaged.png" in said


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such folder"):
        read_unlabelled([tmp_path / "absent"], 32)
    with pytest.raises(DataError, match="no picture in"):
        read_unlabelled([tmp_path], 32)
