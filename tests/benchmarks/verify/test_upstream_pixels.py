"""The ladder's reference pixels against hand calculations and the golden grids' numbers. No model is run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.benchmarks.verify.upstream_pixels import ReferenceProcessor, picture_set
from tinyllava_edge.checkpoint.opened import Checkpoint


def processor(folder: Path, aspect: str) -> ReferenceProcessor:
    checkpoint = write_tiny_checkpoint(folder / aspect, aspect=aspect)
    return ReferenceProcessor([checkpoint], Checkpoint(checkpoint).config)


def test_a_plain_colour_becomes_its_normalized_value(tmp_path: Path) -> None:
    upright = np.full((30, 20, 3), (255, 0, 51), dtype=np.uint8)
    pixels = processor(tmp_path, "square").pixels(upright)
    assert pixels.shape == (3, 56, 56)
    # (value / 255 - 0.5) / 0.5
    assert pixels[:, 7, 9] == pytest.approx([1.0, -1.0, -0.6], abs=1e-6)


def test_padding_centres_the_picture_on_the_mean_colour(tmp_path: Path) -> None:
    upright = np.full((56, 28, 3), 255, dtype=np.uint8)
    pixels = processor(tmp_path, "pad").pixels(upright)
    assert pixels[0, 28, 28] == pytest.approx(1.0)
    assert pixels[0, 28, 2] == pytest.approx((127 / 255 - 0.5) / 0.5, abs=1e-6)  # int(0.5 * 255)
    assert np.array_equal(pixels[:, :, :14], pixels[:, :, :13:-1][:, :, :14])


def test_without_a_processor_file_the_public_siglip_values_count(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "c")
    with_file = ReferenceProcessor([checkpoint], Checkpoint(checkpoint).config)
    without = ReferenceProcessor([tmp_path], Checkpoint(checkpoint).config)
    upright = picture_set(56)[3].upright
    assert np.array_equal(with_file.pixels(upright), without.pixels(upright))


@pytest.mark.parametrize(
    "name",
    [
        *("ViTImageProcessor", "SiglipImageProcessorFast", "MadeUpProcessor", None),
        *("CLIPFeatureExtractor", "BitImageProcessor"),  # which crop, unless they are told otherwise
    ],
)
def test_another_processor_of_the_same_values_gives_the_same_pixels(tmp_path: Path, name: str | None) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "c")
    upright = picture_set(56)[3].upright
    expected = ReferenceProcessor([checkpoint], Checkpoint(checkpoint).config).pixels(upright)
    path = checkpoint / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_processor_type": name}))
    found = ReferenceProcessor([checkpoint], Checkpoint(checkpoint).config).pixels(upright)
    assert np.array_equal(found, expected)
    if name == "ViTImageProcessor":  # transformers' own class of that name
        raw = json.loads(path.read_text())
        theirs = ViTImageProcessorPil(
            **{key: raw[key] for key in ("size", "image_mean", "image_std", "resample")}
        )
        assert np.array_equal(
            theirs(Image.fromarray(upright), return_tensors="np")["pixel_values"][0], expected
        )


def test_without_a_processor_file_a_clip_tower_has_clips_values(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "c")
    config = Checkpoint(checkpoint).config
    clip = replace(config, vision=replace(config.vision, architecture="clip_vision_model"))
    settings = ReferenceProcessor([tmp_path], clip).settings()
    assert settings == {
        "aspect": "square",
        "resize": "shortest_edge",
        "size": 56,
        "crop": 56,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
    }


def test_the_set_has_over_twenty_pictures_of_every_kind() -> None:
    names = [picture.name for picture in picture_set(56)]
    assert len(names) == len(set(names)) >= 20
    for kind in ("rgb_1x1", "rgb_56x56", "grey", "rgba", "grey_16bit", "palette", "exif_orientation_6"):
        assert kind in names
