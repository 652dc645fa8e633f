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
        self._known: dict[Path | bytes, RecordError | None] = {}

    def __call__(self, picture: Path | bytes, name: str = "picture") -> None:
        """Refuse a picture.

        Args:
            picture: a file, or what is in one.
            name: of the latter, for the error.

        Raises:
            RecordError: it is missing or damaged.
        """
        if picture not in self._known:
            self._known[picture] = self._fault(picture, name)
        if (fault := self._known[picture]) is not None:
            raise RecordError(fault.kind, str(fault))

    def _fault(self, picture: Path | bytes, name: str) -> RecordError | None:
        try:
            image = open_picture(picture)
            if self._how is not None:
                check_size(image, self._how)
        except ImageError as error:
            return picture_error(name if isinstance(picture, bytes) else picture, error)
        return None


def picture_error(picture: Path | str, error: ImageError) -> RecordError:
    """An unreadable picture, a file or the name of what is inside another one, as the fault of its record."""
    reason = str(error) if str(picture) in str(error) else f"{picture}: {error}"
    is_there = isinstance(picture, str) or os.path.lexists(picture)
    return RecordError(DAMAGED if is_there else MISSING, reason)
