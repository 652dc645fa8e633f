"""A picture as a file -> pixels [3, height, width], bit-equal to what the model was trained on.

Equal to TinyLLaVA's ImagePreprocess followed by the transformers image processors SiglipImageProcessor,
CLIPImageProcessor and BitImageProcessor in their PIL variants: docs/sources/tinyllava.md#image-preprocessing.
Needs Pillow and numpy only, so that a device computes the same pixels as the trainer.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from tinyllava_edge.errors import CheckpointError, ImageError, UnsupportedModelError
from tinyllava_edge.picture_formats import (
    FORMATS,
    MAX_PIXELS,
    MAX_SIDE,
    WatchedFile,
    block_by_block,
    far_too_large,
    fit,
    open_format,
    within,
)
from tinyllava_edge.picture_given import Fetch, as_file, name_of
from tinyllava_edge.picture_given import Picture as Picture

MAX_FILE_BYTES = 512 << 20  # 40 megapixels of four 16-bit channels are 320 MB
Value = TypeVar("Value")
_BAND_ROWS = 1024  # rows of a padded picture in memory at a time

# What becomes of each of Pillow's modes; the table for people is in docs/bundle.md. Any other is refused: its
# numbers (F) have no range that says what is white, or Pillow has no conversion (LAB).
_PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
_CONVERTED = {**dict.fromkeys(_PLAIN_MODES, "RGB"), "La": "LA", "RGBa": "RGBA"}  # alpha divided out first
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_DARKEST_WHITE = 64  # of 256: what 14 bits in 16 reach; fewer bits are darker

_MAX_VALUE = 1e4  # of a rescaled byte's mean and deviation; keeps every pixel within float32


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

    def __post_init__(self) -> None:
        """Refuse impossible values with ValueError, which the readers of files turn into their own error."""
        if not 0 < self.image_size <= self.size <= MAX_SIDE:
            raise ValueError(f"size {self.size} with crop {self.crop} is not possible")
        if self.resize == "shortest_edge" and self.crop is None:
            raise ValueError("a shortest-edge resize needs a centre crop")
        if self.resample not in list(Image.Resampling):
            raise ValueError(f"resample {self.resample} is not one of Pillow's filters")
        small = all(abs(value) <= _MAX_VALUE for value in (self.rescale_factor, *self.mean, *self.std))
        if not small or not all(abs(value) >= 1 / _MAX_VALUE for value in self.std):
            raise ValueError(
                f"rescale_factor, image_mean or image_std is over {_MAX_VALUE:g}, or image_std near 0"
            )

    @property
    def image_size(self) -> int:
        """Side of the pixels that leave `preprocess`."""
        return self.size if self.crop is None else self.crop


def open_picture(
    picture: Picture,
    *,
    on_white: bool = False,
    max_bytes: int = MAX_FILE_BYTES,
    deadline_s: float | None = None,
    allow_url: bool | Fetch = False,
) -> Image.Image:
    """Open a picture as 8-bit RGB.

    The EXIF orientation of a file is applied; an animation gives its first frame; alpha is dropped, not
    composited (as upstream's `convert("RGB")` does), unless `on_white`; of 16 bits the upper 8 count. A JPEG
    of over 40 megapixels is decoded at half its sides.

    Args:
        picture: a file or its name, what is in one, a URL, an array or an image: `picture_given.Picture`.
            Of an array [height, width, 4] the alpha comes last.
        on_white: composite alpha on white.
        max_bytes: of a file, or of what is in one; for what strangers send 10 MB are plenty.
        deadline_s: seconds until decoding ends with an error; None has no clock, as files of one's own need.
        allow_url: fetch an https URL, as `picture_url.fetch_https` does, or with a function that you give.

    Raises:
        ImageError: not a picture, not to be fetched, over 40 megapixels (a JPEG 120) or 16384 pixels a side
            (found before decoding), over `max_bytes`, not decoded in time, of a format whose decoder is not
            installed, or values whose range nothing says.
    """
    name = name_of(picture)
    convert = _on_white if on_white else _to_rgb
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning: our limit is stricter
            file = as_file(picture, max_bytes=max_bytes, allow_url=allow_url)
            if isinstance(file, Image.Image):
                fit(file, shrink=False)
                return convert(file, _stored_bits(file))
            if deadline_s is None:
                return _decode(file, convert)
            watched: Any = WatchedFile(file, time.monotonic() + deadline_s)
            return within(deadline_s, lambda: _decode(watched, convert))
    except ImageError as error:
        raise error if name in str(error) else ImageError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture in one of {', '.join(FORMATS)}.") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: {far_too_large()}") from None
    except Exception as error:  # Pillow's parsers raise many types on damaged files
        raise ImageError(f"{name}: damaged picture ({type(error).__name__}).") from None


def _decode(file: BinaryIO, convert: Callable[[Image.Image, int], Image.Image]) -> Image.Image:
    try:
        with open_format(file) as image:
            fit(image)
            if isinstance(file, WatchedFile):
                block_by_block(image)
            bits = _stored_bits(image)
            ImageOps.exif_transpose(image, in_place=True)  # a copy would be as large again
            return convert(image, bits)
    finally:
        file.close()


def _to_rgb(image: Image.Image, bits: int) -> Image.Image:
    image.load()
    if image.mode in _GREY_16:  # convert() would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() >> bits:
            raise ImageError(f"grey from {values.min()} to {values.max()}. Save it as 8-bit RGB.")
        grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
        return _checked_range(grey.convert("RGB"), bits, is_single=bool(values.min() == values.max()))
    if image.mode not in _CONVERTED:
        raise ImageError(
            f"pixels of mode {image.mode}: no rule says which value is white. Save it as 8-bit RGB."
        )
    while image.mode != "RGB":
        image = image.convert(_CONVERTED[image.mode])
    if bits == 8:
        return image
    bands: Any = image.getextrema()
    # The lower bytes are gone, so black all over may be 8 bits in 16.
    is_single = all(low == high for low, high in bands) and bool(np.any(bands))
    return _checked_range(image, bits, is_single=is_single)


def _stored_bits(image: Image.Image) -> int:
    """Bits of a value in the file, before it is decoded: 8, 12 or 16."""
    tags: Any = getattr(image, "tag_v2", None) or {}
    if image.mode in _GREY_16:
        if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
            raise ImageError("16-bit grey in which white is 0. Save it as 8-bit RGB.")
        return 12 if tags.get(_TIFF_BITS) == (12,) else 16
    return 16 if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) else 8


def _checked_range(rgb: Image.Image, bits: int, *, is_single: bool) -> Image.Image:
    """Refuse 16 bits of which the upper ones are never used: 8, 10, 12 or 14 bits, which would be dark.

    A single colour shows nothing in either case.
    """
    bands: Any = rgb.getextrema()
    lightest = max(high for _, high in bands)
    if bits == 16 and lightest < _DARKEST_WHITE and not is_single:
        raise ImageError(
            f"16-bit pixels, none over {lightest * 256 + 255} of 65535: fewer bits in a file of 16, which "
            "would be dark? Save it as 8-bit RGB, scaled as you see it."
        )
    return rgb


def _on_white(image: Image.Image, bits: int) -> Image.Image:
    if not image.has_transparency_data or image.mode.startswith("I"):
        return _to_rgb(image, bits)
    sheet = Image.new("RGBA", image.size, "white")
    sheet.alpha_composite(image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA"))
    return sheet.convert("RGB")


def check_size(image: Image.Image, how: Preprocessing) -> None:
    """Refuse what `preprocess` will, without its work.

    Raises:
        ImageError: as `preprocess`.
    """
    if how.aspect != "pad":
        _resized_size(image, how)


def preprocess(image: Image.Image, how: Preprocessing) -> npt.NDArray[np.float32]:
    """Turn an RGB picture into pixels [3, image_size, image_size] float32.

    Raises:
        ImageError: a strip so long that resizing its short edge makes it larger than any allowed picture.
    """
    if how.aspect == "pad":
        image = _resize_padded(image, how)
    else:
        image = _resize(image, _resized_size(image, how), Image.Resampling(how.resample))
    if how.crop is not None:
        left, top = (image.width - how.crop) // 2, (image.height - how.crop) // 2
        image = image.crop((left, top, left + how.crop, top + how.crop))
    pixels = np.asarray(image)  # [h, w, 3] uint8
    table = _value_table(how)
    return np.stack([table[channel][pixels[:, :, channel]] for channel in range(3)])


def _resize(image: Image.Image, size: tuple[int, int], filter_: Image.Resampling) -> Image.Image:
    """Rows and columns in the order of Pillow 13, whichever is installed: each is rounded to bytes.

    Before 13 rows always came first (docs/sources/tinyllava.md#order-of-passes).
    """
    shrinks = image.height - size[1]
    columns_first = shrinks > max(0, 2 * (image.width - size[0]))
    between = (image.width, size[1]) if columns_first else (size[0], image.height)
    return image.resize(between, resample=filter_).resize(size, resample=filter_)


def _resized_size(image: Image.Image, how: Preprocessing) -> tuple[int, int]:
    if how.resize == "stretch":
        return how.size, how.size
    width, height = image.size
    other = int(how.size * max(width, height) / min(width, height))
    if how.size * other > MAX_PIXELS:
        raise ImageError(
            f"{width}x{height} pixels: too long a strip; its centre would become {how.size}x{other}."
        )
    return (how.size, other) if width <= height else (other, how.size)


def _value_table(how: Preprocessing) -> npt.NDArray[np.float32]:
    """[3, 256]: what each byte becomes, rounded where the transformers processors round."""
    rescaled = (np.arange(256, dtype=np.float64) * how.rescale_factor).astype(np.float32)
    mean = np.array(how.mean, dtype=np.float32)[:, None]
    std = np.array(how.std, dtype=np.float32)[:, None]
    return (rescaled[None, :] - mean) / std


def _resize_padded(image: Image.Image, how: Preprocessing) -> Image.Image:
    """Centre a picture on a square of the mean colour, and resize that to [size, size].

    The square of a long picture can be a gigabyte, so it only ever exists in bands. Pillow resizes rows, each
    by itself, and then columns: the result is the same to the bit.
    """
    side, filter_ = max(image.size), Image.Resampling(how.resample)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    red, green, blue = (int(value * 255) for value in how.mean)
    narrow = Image.new("RGB", (how.size, side))
    for start in range(0, side, _BAND_ROWS):
        band = Image.new("RGB", (side, min(_BAND_ROWS, side - start)), (red, green, blue))
        band.paste(image, (left, top - start))
        narrow.paste(band.resize((how.size, band.height), resample=filter_), (0, start))
    return narrow.resize((how.size, how.size), resample=filter_)


def preprocessing_from_processor(
    raw: Mapping[str, Any], *, aspect: Literal["square", "pad"], where: str
) -> Preprocessing:
    """Read the values of a `preprocessor_config.json` (any spelling transformers has used).

    Raises:
        CheckpointError: a value is missing or impossible.
        UnsupportedModelError: a step is switched off or of a kind we do not reproduce.
    """
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if raw.get(step, True) is False:
            raise UnsupportedModelError(f"{where}: {step} is false; only true is supported.")

    def value(key: str, read: Callable[[Any], Value], default: Any = None) -> Value:
        if key not in raw and default is None:
            raise CheckpointError(f"{where}: {key} is missing.")
        found = raw.get(key, default)
        try:
            return read(found)
        except KeyError as error:
            raise CheckpointError(f"{where}: {key}.{error.args[0]} is missing.") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{where}: {key} = {shown(found)}: {error}.") from None

    resize, side = value("size", lambda size: _resize_rule(size, where))
    crops = raw.get("do_center_crop", False)
    values: dict[str, Any] = {
        "crop": value("crop_size", lambda size: _square(size, where)) if crops else None,
        "resample": value("resample", int, 3),
        "rescale_factor": value("rescale_factor", float, 1 / 255),
        "mean": value("image_mean", _three_numbers),
        "std": value("image_std", _three_numbers),
    }
    try:
        return Preprocessing(aspect=aspect, resize=resize, size=side, **values)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}.") from None


def _resize_rule(size: Any, where: str) -> tuple[Literal["stretch", "shortest_edge"], int]:
    if isinstance(size, int):
        return "shortest_edge", size
    if "shortest_edge" in size:
        return "shortest_edge", int(size["shortest_edge"])
    return "stretch", _square(size, where)


def _square(size: Any, where: str) -> int:
    if isinstance(size, Mapping):
        if size["height"] != size["width"]:
            raise UnsupportedModelError(f"{where}: {dict(size)} is not square; only squares are supported.")
        size = size["height"]
    return int(size)


def _three_numbers(values: Any) -> tuple[float, float, float]:
    first, second, third = values
    return float(first), float(second), float(third)
