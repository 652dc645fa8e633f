"""The pictures by which int8 is calibrated and float16's range is audited.

Without `--calibration DIR` they are nine that come with the package, made small: seven photographs of
scikit-image's `skimage.data` (brick, camera, coffee, retina: CC0; clock, coins: public domain or no known
restrictions; hubble: NASA, public domain) and two drawings of ours. They are smooth, textured, grey, dark
and drawn, but none is of a user's own field: a few dozen pictures of that are better.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import UsageError
from tinyllava_edge.image import Preprocessing, open_picture, preprocess

SHIPPED = Path(__file__).parent / "pictures" / "calibration"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_PICTURES = 256


def calibration_files(folder: Path | None, option: str = "calibration") -> list[Path]:
    """The pictures of a directory in the order of their names, or those that come with the package.

    `option` names it in messages.

    Raises:
        UsageError: there is no such directory, no picture in it, or more than `MAX_PICTURES`.
    """
    if folder is None:
        folder = SHIPPED
    if not folder.is_dir():
        raise UsageError(f"--{option} {folder}: no such directory. Give one that holds pictures.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not 0 < len(files) <= MAX_PICTURES:
        raise UsageError(
            f"--{option} {folder}: {len(files)} pictures ({', '.join(SUFFIXES)}), expected 1 to "
            f"{MAX_PICTURES}. A few dozen of the kind that the device will see are best."
        )
    return files


def calibration_pixels(folder: Path | None, how: Preprocessing) -> npt.NDArray[np.float32]:
    """[pictures, 3, h, w]; raises as `calibration_files`, and ImageError for what is no picture."""
    return np.stack([preprocess(open_picture(path), how) for path in calibration_files(folder)])
