"""A picture as a file -> pixels [3, height, width], bit-equal to what the model was trained on.

Equal to TinyLLaVA's ImagePreprocess followed by the transformers image processors SiglipImageProcessor,
CLIPImageProcessor and BitImageProcessor in their PIL variants (spec/tinyllava.md sections 1.2 and 1.3).
Needs Pillow and numpy only, so that a device computes the same pixels as the trainer.
"""

import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from tinyllava_edge.errors import CheckpointError, ImageError, UnsupportedModelError

MAX_PIXELS = 40_000_000
MAX_SIDE = 16_384
# Formats read from files. Others (EPS, FITS, ...) have parsers that are not worth their risk.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

Picture = str | os.PathLike[str] | bytes | Image.Image


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes pixels; the values of `preprocessor_config.json` and `image_aspect_ratio`."""

    aspect: Literal["square", "pad"]
    resize: Literal["stretch", "shortest_edge"]
    size: int  # side, or shortest edge, in pixels
    crop: int | None  # side of the centre crop
    resample: int  # Pillow's number: 2 bilinear, 3 bicubic
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def image_size(self) -> int:
        """Side of the pixels that leave `preprocess`."""
        return self.crop or self.size


def open_picture(picture: Picture) -> Image.Image:
    """Open a picture as 8-bit RGB.

    The EXIF orientation of a file is applied; an animation gives its first frame; alpha is dropped, not
    composited (as upstream's `convert("RGB")` does); 16-bit grey is scaled to 8 bits.

    Raises:
        ImageError: not a picture, or over 40 megapixels or 16384 pixels a side; found before decoding.
    """
    if isinstance(picture, Image.Image):
        _check_size(picture, "picture")
        return _to_rgb(picture)
    if isinstance(picture, bytes):
        name, source = f"picture of {len(picture)} bytes", io.BytesIO(picture)
    else:
        path = Path(picture)
        name = str(path)
        try:
            source = io.BytesIO(path.read_bytes())
        except OSError as error:
            raise ImageError(f"{name}: cannot be read ({error.strerror}). Check the path.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning: our limit is stricter
            with Image.open(source, formats=FORMATS) as image:
                _check_size(image, name)
                image.seek(0)
                return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture in one of {', '.join(FORMATS)}.") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's parsers raise many types on damaged files
        raise ImageError(f"{name}: damaged picture ({type(error).__name__}).") from None


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise ImageError(
            f"{name}: {width}x{height} pixels; the limits are {MAX_SIDE} a side and "
            f"{MAX_PIXELS // 1_000_000} megapixels. Make it smaller first."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip at 255
        values = np.asarray(image)
        return Image.fromarray((values.astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def preprocess(image: Image.Image, how: Preprocessing) -> npt.NDArray[np.float32]:
    """Turn an RGB picture into pixels [3, image_size, image_size] float32."""
    if how.aspect == "pad":
        image = _pad_to_square(image, how.mean)
    if how.resize == "stretch":
        size = (how.size, how.size)
    else:
        width, height = image.size
        short, long = min(width, height), max(width, height)
        other = int(how.size * long / short)
        size = (how.size, other) if width <= height else (other, how.size)
    image = image.resize(size, resample=Image.Resampling(how.resample))
    if how.crop is not None:
        left, top = (image.width - how.crop) // 2, (image.height - how.crop) // 2
        image = image.crop((left, top, left + how.crop, top + how.crop))
    pixels = np.asarray(image)  # [h, w, 3] uint8
    table = _value_table(how)
    return np.stack([table[channel][pixels[:, :, channel]] for channel in range(3)])


def _value_table(how: Preprocessing) -> npt.NDArray[np.float32]:
    """[3, 256]: what each byte becomes, rounded where the transformers processors round."""
    rescaled = (np.arange(256, dtype=np.float64) * how.rescale_factor).astype(np.float32)
    mean = np.array(how.mean, dtype=np.float32)[:, None]
    std = np.array(how.std, dtype=np.float32)[:, None]
    return (rescaled[None, :] - mean) / std


def _pad_to_square(image: Image.Image, mean: tuple[float, float, float]) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    red, green, blue = (int(value * 255) for value in mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def preprocessing_from_processor(
    raw: Mapping[str, Any], *, aspect: Literal["square", "pad"], where: str
) -> Preprocessing:
    """Read the values of a `preprocessor_config.json` (any spelling transformers has used).

    Raises:
        CheckpointError: a value is missing.
        UnsupportedModelError: a step is switched off or of a kind we do not reproduce.
    """
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if raw.get(step, True) is False:
            raise UnsupportedModelError(f"{where}: {step} is false; only true is supported.")
    try:
        size = raw["size"]
        mean, std = (tuple(float(v) for v in raw[key]) for key in ("image_mean", "image_std"))
    except KeyError as error:
        raise CheckpointError(f"{where}: {error.args[0]} is missing.") from None
    if len(mean) != 3 or len(std) != 3:
        raise CheckpointError(f"{where}: image_mean and image_std need three values each.")
    resize: Literal["stretch", "shortest_edge"]
    if isinstance(size, int):
        resize, side = "shortest_edge", size
    elif "shortest_edge" in size:
        resize, side = "shortest_edge", int(size["shortest_edge"])
    elif size.get("height") == size.get("width"):
        resize, side = "stretch", int(size["height"])
    else:
        raise UnsupportedModelError(f"{where}: size {size} is not supported (square only).")
    crop = raw.get("crop_size") if raw.get("do_center_crop", False) else None
    if isinstance(crop, Mapping):
        crop = crop["height"]
    if resize == "shortest_edge" and (crop is None or crop > side):
        raise UnsupportedModelError(f"{where}: a shortest-edge resize needs a smaller centre crop.")
    return Preprocessing(
        aspect=aspect,
        resize=resize,
        size=side,
        crop=crop,
        resample=int(raw.get("resample", 3)),
        rescale_factor=float(raw.get("rescale_factor", 1 / 255)),
        mean=mean,
        std=std,
    )
