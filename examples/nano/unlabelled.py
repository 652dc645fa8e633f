"""Pictures nobody asks about: they show a tower more of the world than the data do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps

from tinyllava_edge.console import note, progress
from tinyllava_edge.errors import DataError, ImageError
from tinyllava_edge.image import open_picture
from tinyllava_edge.picture_formats import FORMATS

_MARGIN = 1 / 16  # of the side, left free around a drawing
_LONGEST = 8  # times as long as wide: what is longer is a line
_FAINTEST = 8  # standard deviation of 8-bit channels below which there is nothing to see
_SKETCH, _SHADES = 12, 24  # pictures are the same that agree at this size in steps of this many shades


def read_unlabelled(folders: Sequence[Path], size: int) -> torch.Tensor:
    """Read every picture below some folders, as drawings on white.

    Each is cut to what is drawn and fitted into a square. Lines, empty sheets and repetitions are left out,
    and so are files that are damaged or far too large, which is said on stderr.

    Args:
        folders: searched with all that is in them, in order of their paths.
        size: side in pixels.

    Returns:
        Pixels [pictures, 3, size, size], uint8; none where no folder is given.

    Raises:
        DataError: a folder is missing, or there is no picture in any.
    """
    endings = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
    paths: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder. Give --pictures a folder of pictures.")
        paths += sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    drawings: dict[bytes, Image.Image] = {}
    refused: list[ImageError] = []
    with progress() as bar:
        for path in bar.track(paths, description="pictures"):
            try:
                drawing = _drawing(path, size)
            except ImageError as error:
                refused.append(error)
                continue
            if drawing is not None:
                drawings.setdefault(_sketch(drawing), drawing)
    if refused:
        note(f"left out {len(refused)} of {len(paths)} pictures; the first: {refused[0]}")
    if folders and not drawings:
        where = ", ".join(map(str, folders))
        raise DataError(f"no picture in {where}. Give --pictures a folder of pictures.")
    pixels = np.array([*map(np.asarray, drawings.values())], np.uint8).reshape(-1, size, size, 3)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _drawing(path: Path, size: int) -> Image.Image | None:
    """A picture cut to its ink, on a white square; nothing if there is little to see."""
    sheet = open_picture(path, on_white=True)
    box = ImageChops.invert(sheet).point(lambda value: value > 5 and 255).getbbox()
    if box is None:
        return None
    drawn = sheet.crop(box)
    if max(drawn.size) > _LONGEST * min(drawn.size):
        return None
    inner = size - 2 * round(size * _MARGIN)
    fitted = ImageOps.pad(drawn, (inner, inner), Image.Resampling.BICUBIC, color="white")
    fitted = ImageOps.expand(fitted, (size - inner) // 2, "white")
    return fitted if np.asarray(fitted).std() >= _FAINTEST else None


def _sketch(drawing: Image.Image) -> bytes:
    """Equal for pictures that look alike."""
    small = np.asarray(drawing.resize((_SKETCH, _SKETCH), Image.Resampling.BOX))
    return (small // _SHADES).tobytes()
