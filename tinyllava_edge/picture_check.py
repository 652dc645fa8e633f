"""Whether pictures can be used, told before long work; apart from `record_check`, for it needs numpy."""

import os
from pathlib import Path

from tinyllava_edge.errors import ImageError, RecordError
from tinyllava_edge.image import Preprocessing, check_size, open_picture
from tinyllava_edge.record_check import DAMAGED, MISSING


class PictureCheck:
    """Opens pictures as the work itself will; during one check, each path once however many records show it.

    Args:
        how: preprocessing that the picture has to be fit for too.
    """

    def __init__(self, how: Preprocessing | None = None) -> None:
        self._how = how
        self._known: dict[Path, RecordError | None] = {}

    def __call__(self, path: Path) -> None:
        """Refuse a picture.

        Raises:
            RecordError: it is missing or damaged.
        """
        if path not in self._known:
            self._known[path] = self._fault(path)
        if (fault := self._known[path]) is not None:
            raise RecordError(fault.kind, str(fault))

    def _fault(self, path: Path) -> RecordError | None:
        try:
            image = open_picture(path)
            if self._how is not None:
                check_size(image, self._how)
        except ImageError as error:
            return picture_error(path, error)
        return None


def picture_error(path: Path, error: ImageError) -> RecordError:
    """An unreadable picture as the fault of its record."""
    reason = str(error) if str(path) in str(error) else f"{path}: {error}"
    return RecordError(DAMAGED if os.path.lexists(path) else MISSING, reason)
