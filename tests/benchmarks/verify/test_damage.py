"""Whatever happened to reference/ or parity/, verify says equal, not equal or damaged."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .damage import PROMPTS, SMALL, TENSORS, damaged_verifications, saved, verified


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.unpack_archive(SMALL, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_slice_of_the_fuzz() -> None:
    ends = damaged_verifications(0, 24)
    assert sum(ends.values()) == 24


def test_a_reference_that_is_not_changed_is_equal(root: Path) -> None:
    assert verified(root, PROMPTS) == 0


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("What is this", "Who is this", 1),
        ('"name": "single"', '"name": 5', 2),
        ('"image_token_id": -200', '"image_token_id": -201', 2),
        ('"prompts"', '"others"', 2),
    ],
)
def test_a_wrong_reference_is_1_and_an_impossible_one_2(root: Path, old: str, new: str, code: int) -> None:
    path = root / PROMPTS
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert verified(root, PROMPTS) == code


def test_a_reference_without_a_prompt_compares_nothing(root: Path) -> None:
    path = root / PROMPTS
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "prompts": []}), encoding="utf-8")
    assert verified(root, PROMPTS) == 2


@pytest.mark.parametrize(("change", "code"), [(1.0, 1), (float("nan"), 2)])
def test_a_wrong_pixel_is_1_and_no_number_2(root: Path, change: Any, code: int) -> None:
    path = root / TENSORS
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    values = np.load(io.BytesIO(entries["pixels/0.npy"]))
    values[0, 0, 0] += change
    entries["pixels/0.npy"] = saved(values)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert verified(root, TENSORS) == code
