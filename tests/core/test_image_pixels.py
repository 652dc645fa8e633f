"""Preprocessing, bit for bit against the transformers processors that TinyLLaVA trained with."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.golden import read_golden, shared_fixtures
from tinyllava_edge.errors import CheckpointError, ImageError, UnsupportedModelError
from tinyllava_edge.image import Preprocessing, open_picture, preprocess, preprocessing_from_processor
from tinyllava_edge.model.assets import PUBLIC_PROCESSORS

GOLDEN = read_golden("preprocess/preprocess.json")
SIGLIP = GOLDEN["processors"]["siglip-384"]["preprocessor_config"]
CLIP = GOLDEN["processors"]["clip-336"]["preprocessor_config"]
DINO = GOLDEN["processors"]["dinov2-224"]["preprocessor_config"]


def read_siglip(**changes: Any) -> Preprocessing:
    return preprocessing_from_processor({**SIGLIP, **changes}, aspect="square", where="test")


@pytest.mark.parametrize(
    "result", GOLDEN["results"], ids=lambda r: f"{r['processor']}-{r['aspect']}-{r['image'].split('.')[0]}"
)
def test_pixels_are_equal_to_the_bit(result: dict[str, Any]) -> None:
    raw = GOLDEN["processors"][result["processor"]]["preprocessor_config"]
    how = preprocessing_from_processor(raw, aspect=result["aspect"], where="test")
    pixels = preprocess(open_picture(shared_fixtures() / "images" / result["image"]), how)
    assert pixels.dtype == np.float32
    assert list(pixels.shape) == result["shape"]
    assert pixels.mean(axis=(1, 2)).tolist() == pytest.approx(result["mean"], abs=1e-5)
    assert hashlib.sha256(pixels.astype("<f4").tobytes()).hexdigest() == result["sha256"]


@pytest.mark.parametrize(
    ("tower", "processor"),
    [
        ("google/siglip-so400m-patch14-384", "siglip-384"),
        ("openai/clip-vit-large-patch14-336", "clip-336"),
        ("openai/clip-vit-large-patch14", "clip-224"),
        ("openai/clip-vit-base-patch16", "clip-224"),
        ("facebook/dinov2-large", "dinov2-224"),
    ],
)
def test_built_in_values_are_those_of_the_processors(tower: str, processor: str) -> None:
    raw = GOLDEN["processors"][processor]["preprocessor_config"]
    built_in, read = (
        preprocessing_from_processor(values, aspect="square", where="test")
        for values in (PUBLIC_PROCESSORS[tower], raw)
    )
    assert built_in == read


@pytest.mark.parametrize("size", [(2600, 1300), (700, 2500), (1, 3000)])
def test_a_padded_picture_in_bands_is_the_picture_on_its_whole_square(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    how = preprocessing_from_processor(CLIP, aspect="pad", where="test")
    side = max(size)
    square = Image.new("RGB", (side, side), (122, 116, 104))  # int(255 * CLIP's mean)
    square.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    on_square = preprocessing_from_processor(CLIP, aspect="square", where="test")
    assert np.array_equal(preprocess(picture, how), preprocess(square, on_square))


def test_a_strip_whose_short_edge_would_be_blown_up_to_gigabytes_is_refused() -> None:
    how = preprocessing_from_processor(CLIP, aspect="square", where="test")
    with pytest.raises(ImageError, match=r"16384x1 pixels: too long a strip"):
        preprocess(Image.new("RGB", (16384, 1)), how)
    assert preprocess(Image.new("RGB", (1, 1)), how).shape == (3, 336, 336)


def test_a_size_as_one_number_is_the_shortest_edge() -> None:
    how = preprocessing_from_processor(CLIP, aspect="square", where="test")
    assert (how.resize, how.size, how.crop, how.image_size) == ("shortest_edge", 336, 336, 336)


def test_a_crop_smaller_than_the_size_gives_the_size_of_the_pixels() -> None:
    how = preprocessing_from_processor(DINO, aspect="square", where="test")
    assert (how.size, how.crop, how.image_size) == (256, 224, 224)


@pytest.mark.parametrize("missing", ["size", "image_mean", "image_std"])
def test_a_missing_value_is_named(missing: str) -> None:
    raw = {key: value for key, value in SIGLIP.items() if key != missing}
    with pytest.raises(CheckpointError, match=f"processor.json: {missing} is missing"):
        preprocessing_from_processor(raw, aspect="square", where="processor.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"do_resize": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"size": {"height": 384, "width": 200}},
    ],
    ids=json.dumps,
)
def test_a_step_that_is_not_reproduced_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="test: "):
        read_siglip(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"height": 0, "width": 0}},
        {"size": {"height": -384, "width": -384}},
        {"size": {"height": 10**9, "width": 10**9}},
        {"size": {"height": "x", "width": "x"}},
        {"size": None},
        {"size": []},
        {"size": {}},
        {"size": {"shortest_edge": 384}},  # without a crop the result is not square
        {"size": 224, "do_center_crop": True, "crop_size": 225},
        {"size": 224, "do_center_crop": True, "crop_size": 0},
        {"size": 224, "do_center_crop": True},
        {"resample": 17},
        {"resample": "bicubic"},
        {"rescale_factor": float("inf")},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": 0.5},
        {"image_mean": ["a", "b", "c"]},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_std": [0.5, float("nan"), 0.5]},
        {"image_std": [0.5, 10**400, 0.5]},
    ],
    ids=lambda changes: json.dumps(changes)[:60],
)
def test_an_impossible_value_is_refused_by_its_key(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"test: .*({'|'.join(changes)})"):
        read_siglip(**changes)
