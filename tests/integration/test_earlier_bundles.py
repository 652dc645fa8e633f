"""Bundles of earlier releases open, with a note where they lack something, answer, and are verified."""

import json
import shutil
from pathlib import Path

import pytest

from tests.benchmarks.verify.damage import exit_code_of_verify
from tinyllava_edge import open_bundle
from tinyllava_edge.parity_files import read_parity

STORED = Path(__file__).parents[1] / "fixtures" / "bundles"
NAMES = ("2026-11-22", "2026-11-26")  # before there was a digest


@pytest.fixture(params=NAMES)
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.unpack_archive(STORED / f"{request.param}.zip", tmp_path / "bundle")
    return tmp_path / "bundle"


def test_it_opens_with_a_note_and_answers_as_torch_did_then(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = json.loads((earlier / "reference" / "reference.json").read_bytes())["prompts"][0]
    with open_bundle(earlier, threads=1) as model:
        stream = model.answer([(stored["turns"][0][0], None)], earlier / "reference/one.png", max_tokens=6)
        list(stream)
        assert stream.ids == stored["greedy_ids"][:6]
        exported = read_parity(model.bundle, "export")
    assert exported is not None
    assert set(exported) >= {"vision", "language"}
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"{earlier}: written before manifests had a digest")


def test_it_is_verified(earlier: Path) -> None:
    assert exit_code_of_verify(earlier) == 0


def test_every_stored_bundle_is_tried() -> None:
    assert sorted(path.stem for path in STORED.glob("*.zip")) == sorted(NAMES)
