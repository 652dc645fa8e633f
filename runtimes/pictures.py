"""Pictures -> rows of the language model's input, each picture encoded once."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from tinyllava_edge.bundle import VisionSpec
from tinyllava_edge.image import Picture, open_picture, preprocess

from .base import VisionBackend
from .context import PictureRows
from .store import PictureStore
from .timings import Stopwatch

CACHE_BYTES = 256 << 20  # about 35 pictures of Phi-2 with SigLIP, 728 x 2560


def as_pictures(given: Sequence[Picture] | Picture | None) -> tuple[Picture, ...]:
    """Several pictures, or one by itself: a path is a sequence too, of characters that are no pictures."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str | bytes | os.PathLike | Image.Image) else tuple(given)


class PictureEncoder:
    """Preprocesses and encodes pictures; the least recently used embeddings are forgotten first.

    A picture is known by the hash of its pixels and the vision backend's name (which has the variant), so the
    same picture under two names, or sent again in a later turn, is encoded once; with a store, once for all
    processes.
    """

    def __init__(self, vision: VisionBackend, spec: VisionSpec, store: PictureStore | None = None) -> None:
        self._vision = vision
        self._spec = spec
        self._store = store
        self._cache_bytes = CACHE_BYTES
        self._cache: OrderedDict[bytes, PictureRows] = OrderedDict()

    def encode(self, pictures: Sequence[Picture], stopwatch: Stopwatch) -> list[PictureRows]:
        """Embeddings of pictures, in order; all are opened before the first one is encoded.

        Raises:
            ImageError: a picture cannot be read, or is over the limits.
            BackendError: the vision backend failed.
        """
        with stopwatch.stage("preprocess"):
            all_pixels = [preprocess(open_picture(picture), self._spec.preprocessing) for picture in pictures]
        with stopwatch.stage("vision"):
            return [self._rows(pixels) for pixels in all_pixels]

    def _rows(self, pixels: npt.NDArray[np.float32]) -> PictureRows:
        digest = hashlib.sha256(self._vision.name.encode())
        digest.update(np.ascontiguousarray(pixels).data)
        key = digest.digest()
        known = self._cache.pop(key, None)
        if known is None:
            known = PictureRows(key, self._stored(key, pixels))
        self._cache[key] = known  # now the most recently used
        used = sum(picture.rows.nbytes for picture in self._cache.values())
        while len(self._cache) > 1 and used > self._cache_bytes:
            used -= self._cache.popitem(last=False)[1].rows.nbytes
        return known

    def _stored(self, key: bytes, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Rows [tokens, hidden] from the store, or computed and then kept there."""
        shape = (self._spec.num_tokens, self._spec.hidden_size)
        kept = self._store.read("rows", key) if self._store else None
        if kept is not None and len(kept) == 4 * shape[0] * shape[1]:
            return np.frombuffer(kept, dtype=np.float32).reshape(shape)
        rows = np.ascontiguousarray(self._vision.encode(pixels[None])[0])
        if self._store:
            self._store.keep("rows", key, rows.tobytes())
        return rows
