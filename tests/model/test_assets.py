"""What a checkpoint needs besides weights, where people really have it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny import TOKENIZER_FOLDER, write_tiny_checkpoint
from tinyllava_edge.checkpoint import source_names
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, MissingFileError, UnsupportedModelError
from tinyllava_edge.image import preprocess
from tinyllava_edge.model.assets import read_assets

PUBLIC = "google/siglip-so400m-patch14-384"
PLAIN, NESTED = "preprocessor_config.json", "processor_config.json"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny", hidden=32, intermediate=48, layers=1)


@pytest.fixture(autouse=True)
def _said_again() -> None:
    """What is said once in a process is said in each test."""
    source_names.say_taken.cache_clear()


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_processor_of_transformers_5_prepares_pictures_as_its_own_class_does(checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_mean=[0.4, 0.5, 0.6]
    )
    make: Any = LlavaProcessor  # not typed
    make(theirs, AutoTokenizer.from_pretrained(TOKENIZER_FOLDER)).save_pretrained(checkpoint.parent / "p")
    (checkpoint / PLAIN).unlink()
    (checkpoint / NESTED).write_bytes((checkpoint.parent / "p" / NESTED).read_bytes())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    expected = theirs(picture, return_tensors="np")["pixel_values"][0]
    found = preprocess(picture, read_assets(Checkpoint(checkpoint)).preprocessing)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6)


def test_two_processors_that_differ_are_named(checkpoint: Path) -> None:
    values = json.loads((checkpoint / PLAIN).read_text())
    (checkpoint / NESTED).write_text(json.dumps({"image_processor": values}))
    assert read_assets(Checkpoint(checkpoint)).preprocessing.mean == (0.5, 0.5, 0.5)
    change(checkpoint / NESTED, image_processor=values | {"image_mean": [0.4] * 3})
    with pytest.raises(CheckpointError, match=rf"{PLAIN}: image_mean is .*{NESTED}. Remove the one"):
        read_assets(Checkpoint(checkpoint))


@pytest.mark.parametrize("values", [{}, {"patch_size": 14, "image_token": "<image>"}])
def test_a_processor_config_without_an_image_processor_is_passed_over(
    checkpoint: Path, values: dict[str, Any]
) -> None:
    (checkpoint / NESTED).write_text(json.dumps(values))
    assert read_assets(Checkpoint(checkpoint)).preprocessing.size == 56
    (checkpoint / PLAIN).unlink()
    with pytest.raises(
        MissingFileError, match=f"no {PLAIN}, nor {NESTED} with the key .image_processor., in"
    ):
        read_assets(Checkpoint(checkpoint))


@pytest.mark.parametrize(
    "name",
    [
        f"/data/hf/{PUBLIC}",
        f"/models/{PUBLIC.split('/')[1]}",
        f"/root/.cache/huggingface/hub/models--{PUBLIC.replace('/', '--')}/snapshots/0123",
    ],
)
def test_a_trainers_path_with_a_public_name_is_taken_for_it_and_said(
    checkpoint: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / PLAIN).unlink()
    change(checkpoint / "config.json", vision_model_name_or_path=name)
    found = read_assets(Checkpoint(checkpoint)).preprocessing
    assert (found.resize, found.size, found.mean, found.std) == ("stretch", 56, (0.5,) * 3, (0.5,) * 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line
        == f"config.json names {name!r}; taken for it: built-in values of {PUBLIC}, for pictures of 56 px"
    )


@pytest.mark.parametrize("place", ["my-tower", "runs/my-tower"])
def test_the_end_of_a_trainers_path_is_looked_for_under_sources(
    checkpoint: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint.parent / "sources" / place
    folder.mkdir(parents=True)
    (checkpoint / PLAIN).rename(folder / PLAIN)
    change(folder / PLAIN, image_mean=[0.25] * 3)
    change(checkpoint / "config.json", vision_model_name_or_path="/home/trainer/runs/my-tower")
    opened = Checkpoint(checkpoint, sources=checkpoint.parent / "sources")
    assert read_assets(opened).preprocessing.mean == (0.25,) * 3
    assert capsys.readouterr().err.strip().endswith(f"taken for it: {folder}")


@pytest.mark.parametrize(
    ("key", "value"), [("do_pad", True), ("image_grid_pinpoints", [[336, 672]]), ("max_num_patches", 256)]
)
def test_a_processor_that_does_more_is_refused_by_name(checkpoint: Path, key: str, value: Any) -> None:
    change(checkpoint / PLAIN, **{key: value})
    with pytest.raises(UnsupportedModelError, match=f"{PLAIN}: {key} is .*SiglipImageProcessor"):
        read_assets(Checkpoint(checkpoint))


def test_a_template_that_the_tokenizer_cannot_write_is_named(checkpoint: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no token '<\|im_end\|>', with which template 'qwen2_inst"
    ) as e:
        read_assets(Checkpoint(checkpoint, template="qwen2_instruct"))
    assert f"{checkpoint}: the tokenizer" in str(e.value)
