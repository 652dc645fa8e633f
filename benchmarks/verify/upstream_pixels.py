"""Pictures to try, and their pixels as transformers' own image processors make them.

The classes are those that compute with Pillow: the original code's golden pixels equal theirs bit by bit, and
the torchvision ones differ. Padding to a square is upstream's, restated with numpy.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from tinyllava_edge.checkpoint.config import ModelConfig
from tinyllava_edge.checkpoint.files import processor_in, read_processor

Pixels = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TrialPicture:
    """A picture as a file's bytes, and the upright RGB values [h, w, 3] that a model must be shown."""

    name: str
    file: bytes
    upright: Bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.upright.shape[1], self.upright.shape[0]


class ReferenceProcessor:
    """Upright RGB values to pixels, by the classes of transformers.

    Args:
        directories: where the processor's file may be, the first that has one counts. Without one, the
            defaults of the tower's class at the tower's size, which are the public repositories' values.
        config: what the checkpoint says of its tower and of `image_aspect_ratio`.
    """

    def __init__(self, directories: list[Path], config: ModelConfig) -> None:
        paths = [path for path in map(processor_in, directories) if path is not None]
        raw = read_processor(paths[0]) if paths else _defaults(config)
        self._processor = _processor_class(raw)(**_settings(raw))
        self._pad = config.image_aspect_ratio == "pad"

    def settings(self) -> dict[str, Any]:
        """What transformers' processor will do, by the names of the manifest's preprocessing."""
        processor = self._processor
        size = {name: value for name, value in dict(processor.size).items() if value is not None}
        by_edge = "shortest_edge" in size
        return {
            "aspect": "pad" if self._pad else "square",
            "resize": "shortest_edge" if by_edge else "stretch",
            "size": size["shortest_edge"] if by_edge else size["height"],
            "crop": processor.crop_size["height"] if getattr(processor, "do_center_crop", None) else None,
            "resample": int(processor.resample),
            "rescale_factor": processor.rescale_factor,
            "mean": tuple(processor.image_mean),
            "std": tuple(processor.image_std),
        }

    def pixels(self, upright: Bytes) -> Pixels:
        """[h, w, 3] uint8 -> [3, image_size, image_size] float32."""
        if self._pad:
            upright = _expand_to_square(upright, self._processor.image_mean)
        with patch.object(Image.Image, "resize", resize_as_pillow_13):
            batch = self._processor(Image.fromarray(upright), return_tensors="np")["pixel_values"]
        return np.asarray(batch[0], dtype=np.float32)


_RESIZE = Image.Image.resize


def resize_as_pillow_13(
    image: Image.Image, size: tuple[int, int], resample: int | None = None, **others: Any
) -> Image.Image:
    """In the order of passes that `preprocess` has: docs/sources/tinyllava.md#order-of-passes."""
    if int(PIL.__version__.split(".")[0]) < 13 and not any(others.values()):
        width, height = image.size
        if height - size[1] > max(0, 2 * (width - size[0])):
            image = _RESIZE(image, (width, size[1]), resample)
    return _RESIZE(image, size, resample, **others)


def _processor_class(raw: Mapping[str, Any]) -> Any:
    """The one of these with the steps that the values ask for; its name decides nothing, as in an export."""
    name = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or "").lower()
    cropping = "bit" if name.startswith("bit") else "clip"
    family = cropping if raw.get("do_center_crop") else "siglip"
    class_name = {"siglip": "Siglip", "clip": "CLIP", "bit": "Bit"}[family] + "ImageProcessor"
    try:
        module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    except ModuleNotFoundError:  # transformers < 5: the class without a suffix computes with Pillow
        return getattr(import_module("transformers"), class_name)
    return getattr(module, f"{class_name}Pil")


def _defaults(config: ModelConfig) -> dict[str, Any]:
    side = config.vision.image_size
    if config.vision.architecture == "siglip_vision_model":
        return {"image_processor_type": "SiglipImageProcessor", "size": {"height": side, "width": side}}
    crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
    return {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": side}, **crop}


def _settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    names = ("size", "crop_size", "do_center_crop", "image_mean", "image_std", "resample", "rescale_factor")
    return {name: raw[name] for name in names if name in raw}


def _expand_to_square(upright: Bytes, mean: tuple[float, float, float]) -> Bytes:
    """Upstream's expand2square: docs/sources/tinyllava.md#image-preprocessing."""
    height, width = upright.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = [int(value * 255) for value in mean]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = upright
    return square


def picture_set(side: int) -> list[TrialPicture]:
    """Over twenty pictures: sizes, shapes, modes, orientations; `side` is the model's own size."""
    rng = np.random.default_rng(20)
    sizes = [(side, side), (2 * side, 2 * side), (5 * side + 3, 4 * side + 1), (640, 480), (1, 1), (2, 3)]
    sizes += [(1, 40), (40, 1), (31, 17), (139, 251), (403, 61), (61, 403)]
    sizes += [(side - 1, side), (side, side + 1)]
    found = [_png(f"rgb_{width}x{height}", _scene(rng, width, height)) for width, height in sizes]
    return [*found, *_modes(rng), *_orientations(rng)]


def _scene(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Smooth colours under sharp edges and a little noise, so that every resampling mistake shows."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    red = 255 * x
    green = 255 * (0.5 + 0.5 * np.sin(12 * y + 5 * x))
    blue = np.where((np.floor(x * 9) + np.floor(y * 7)) % 2 == 0, 220.0, 30.0)
    scene = np.stack([red, green, blue], axis=-1) + rng.normal(0, 8, (height, width, 3))
    return np.clip(scene, 0, 255).astype(np.uint8)


def _png(name: str, upright: Bytes) -> TrialPicture:
    return TrialPicture(name, _encoded(Image.fromarray(upright), "PNG"), upright)


def _modes(rng: np.random.Generator) -> Iterator[TrialPicture]:
    """Modes whose RGB values can be said without the code under test."""
    rgb = _scene(rng, 97, 64)
    grey = rgb[:, :, 1]
    alpha = np.tile(np.linspace(0, 255, 97).astype(np.uint8), (64, 1))
    flat = np.repeat(grey[:, :, None], 3, axis=2)
    yield TrialPicture("grey", _encoded(Image.fromarray(grey), "PNG"), flat)
    yield TrialPicture("rgba", _encoded(Image.fromarray(np.dstack([rgb, alpha])), "PNG"), rgb)
    yield TrialPicture("grey_alpha", _encoded(Image.fromarray(np.dstack([grey, alpha])), "PNG"), flat)
    wide = grey.astype(np.uint16) * 257  # 0..65535, whose high byte is the grey value
    yield TrialPicture("grey_16bit", _encoded(Image.fromarray(wide), "PNG"), flat)
    palette = Image.fromarray(rgb).quantize(32)
    colours = np.asarray(palette.getpalette(), dtype=np.uint8).reshape(-1, 3)
    yield TrialPicture("palette", _encoded(palette, "PNG"), colours[np.asarray(palette)])
    frames = [Image.fromarray(np.full((20, 30), value, dtype=np.uint8)) for value in (200, 10)]
    animated = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield TrialPicture("animated_first_frame", animated, np.full((20, 30, 3), 200, dtype=np.uint8))


def _orientations(rng: np.random.Generator) -> Iterator[TrialPicture]:
    """JPEGs whose EXIF says how the camera was held."""
    stored = Image.fromarray(_scene(rng, 120, 80))
    turns = {3: 2, 6: 3, 8: 1}  # EXIF orientation: quarter turns to the left
    for orientation, quarters in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = _encoded(stored, "JPEG", quality=95, exif=exif)
        with Image.open(io.BytesIO(_encoded(stored, "JPEG", quality=95))) as decoded:
            upright = np.ascontiguousarray(np.rot90(np.asarray(decoded), quarters))
        yield TrialPicture(f"exif_orientation_{orientation}", file, upright)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
