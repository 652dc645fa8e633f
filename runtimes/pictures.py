"""Pictures -> rows of the language model's input, each picture encoded once."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import VisionSpec
from tinyllava_edge.errors import ImageError
from tinyllava_edge.image import Picture, open_picture, preprocess
from tinyllava_edge.picture_given import EXPECTED, Fetch, is_picture, not_a_picture

from .base import VisionBackend
from .context import PictureRows
from .store import PictureStore
from .timings import Stopwatch

CACHE_BYTES = 256 << 20  # about 35 pictures of Phi-2 with SigLIP, 728 x 2560


@dataclass(frozen=True)
class Prepared:
    """A picture that was decoded and preprocessed ahead, for this model alone.

    Attributes:
        pixels: [3, image_size, image_size] float32.
        spent_ns: how long that took.
    """

    pixels: npt.NDArray[np.float32]
    spent_ns: int


def as_pictures(given: Any) -> tuple[Picture, ...]:
    """Several pictures, or one by itself, as `is_picture` has it; None is none.

    Raises:
        ImageError: it is neither, or something in it is no picture.
    """
    if given is None:
        return ()
    if _is_one(given):
        return (given,)
    if not isinstance(given, Sequence | Iterator):
        raise not_a_picture(given, " Several are a list of them.")
    several = tuple(given)
    for place, one in enumerate(several):
        if not _is_one(one):
            raise ImageError(f"pictures[{place}] is of type {type(one).__name__}: expected {EXPECTED}.")
    return several


def _is_one(given: object) -> bool:
    return is_picture(given) or isinstance(given, Prepared)


class PictureEncoder:
    """Preprocesses and encodes pictures; the least recently used embeddings are forgotten first.

    A picture is known by the hash of its pixels, the vision backend's name (which has the variant) and the
    rows that it becomes, so the same picture under two names, or sent again in a later turn, is encoded once;
    with a store, once for all processes.

    Args:
        vision: encodes them.
        spec: how they become pixels, and what they are encoded to.
        store: keeps that on disk, or None.
        allow_url: as of `open_picture`.
    """

    def __init__(
        self,
        vision: VisionBackend,
        spec: VisionSpec,
        store: PictureStore | None = None,
        allow_url: bool | Fetch = False,
    ) -> None:
        self._vision = vision
        self._spec = spec
        self._store = store
        self._allow_url = allow_url
        self._cache_bytes = CACHE_BYTES
        self._lock = threading.Lock()  # several models may share it
        self._cache: OrderedDict[bytes, PictureRows] = OrderedDict()

    def encode(self, pictures: Sequence[Picture], stopwatch: Stopwatch) -> list[PictureRows]:
        """Embeddings of pictures, in order; all are opened before the first one is encoded.

        Raises:
            ImageError: a picture cannot be read, or is over the limits.
            BackendError: the vision backend failed.
        """
        with stopwatch.stage("preprocess"):
            ahead = sum(one.spent_ns for one in pictures if isinstance(one, Prepared))
            prepared = [self.prepare(picture) for picture in pictures]
        stopwatch.spent_ns["preprocess"] += ahead
        with stopwatch.stage("vision"), self._lock:
            return [self._rows(one.pixels) for one in prepared]

    def prepare(self, picture: Picture | Prepared) -> Prepared:
        """Decode and preprocess a picture, if that was not done; any thread may. Errors as of `encode`."""
        if isinstance(picture, Prepared):
            return picture
        started = time.perf_counter_ns()
        pixels = preprocess(open_picture(picture, allow_url=self._allow_url), self._spec.preprocessing)
        return Prepared(pixels, time.perf_counter_ns() - started)

    def _rows(self, pixels: npt.NDArray[np.float32]) -> PictureRows:
        digest = hashlib.sha256(f"{self._vision.name} {self._spec.num_tokens}".encode())
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
