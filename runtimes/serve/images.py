"""Pictures of requests: from a data URL, an allowed host, or an earlier request by their hash."""

import base64
import binascii
import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Collection
from functools import partial

from PIL import Image

from tinyllava_edge.cache import cache_folder
from tinyllava_edge.errors import ImageError
from tinyllava_edge.image import open_picture
from tinyllava_edge.picture_given import Fetch
from tinyllava_edge.picture_url import fetch_https
from tinyllava_edge.runtimes.store import FOLDER, PictureStore

from .errors import ApiError

MAX_PICTURES = 8  # of one request
MAX_PICTURE_BYTES = 10_000_000  # of its file
MAX_KNOWN_BYTES = 128 << 20  # files of pictures that are known by their hash
DECODE_TIMEOUT_S = 5.0
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)
_ID = re.compile("[0-9a-f]{64}")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")
FORMATS = "JPEG, PNG, WebP, GIF (its first frame) or BMP"


def open_file_store(store_mb: int) -> PictureStore | None:
    """Where files of pictures outlive the process: beside what they become, within the same bound."""
    if store_mb == 0:
        return None
    return PictureStore(cache_folder() / FOLDER, b"files of requests", store_mb * 10**6)


def fetch_from(hosts: Collection[str]) -> Fetch | None:
    """What fetches https URLs of the hosts that the owner names; None where there is none."""
    allowed = frozenset(host.lower() for host in hosts)
    return partial(fetch_https, max_bytes=MAX_PICTURE_BYTES, hosts=allowed) if allowed else None


class KnownPictures:
    """Files of pictures by the SHA-256 of their bytes; the least recently used are forgotten first.

    Used by several threads. With a store, what was sent to an earlier process is known too.
    """

    def __init__(self, store: PictureStore | None = None, fetch: Fetch | None = None) -> None:
        self._store = store
        self._fetch = fetch
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._used = 0
        self._lock = threading.Lock()

    def from_url(self, url: str, where: str) -> tuple[str, Image.Image]:
        """The id and the pixels of what an `image_url` names.

        Raises:
            ApiError: 400, with `where` as its field.
        """
        found = _DATA_URL.match(url[:80])
        if found is not None:
            data = _decoded(url, found.end(), where)
        elif url[:8].lower() == "https://" and self._fetch is not None:
            try:
                data = self._fetch(url)
            except ImageError:  # which has addresses of the owner's network, and what is there said
                raise _bad("the URL may not be fetched from here, or has no picture.", where) from None
        else:
            hosts = "" if self._fetch is None else ", or an https URL of a host that the owner allows"
            raise _bad(f"expected a data URL, data:image/...;base64,...{hosts}.", where)
        picture = _opened(data, where)
        image_id = hashlib.sha256(data).hexdigest()
        self._keep(image_id, data)
        return image_id, picture

    def from_id(self, image_id: str, where: str) -> tuple[str, Image.Image]:
        """A picture that was sent before.

        Raises:
            ApiError: 404 where it is not known any more, and is to be sent again.
        """
        if not _ID.fullmatch(image_id):
            raise _bad("expected the SHA-256 of a picture's bytes, 64 digits in lower case.", where)
        with self._lock:
            data = self._files.get(image_id)
            if data is not None:
                self._files.move_to_end(image_id)
        if data is None and self._store is not None:
            data = self._store.read("file", bytes.fromhex(image_id))
        if data is None:
            raise ApiError(
                404, "the picture is not known here. Send it again.", param=where, code="image_not_found"
            )
        return image_id, _opened(data, where)

    def _keep(self, image_id: str, data: bytes) -> None:
        with self._lock:
            if image_id in self._files:
                self._files.move_to_end(image_id)
                return
            self._files[image_id] = data
            self._used += len(data)
            while self._used > MAX_KNOWN_BYTES:
                self._used -= len(self._files.popitem(last=False)[1])
            if self._store is not None:
                self._store.keep("file", bytes.fromhex(image_id), data)


def _decoded(url: str, start: int, where: str) -> bytes:
    if (len(url) - start) * 3 // 4 > MAX_PICTURE_BYTES + 2:
        raise _bad(f"the picture has more than {MAX_PICTURE_BYTES:,} bytes.", where)
    try:
        return base64.b64decode(url[start:], validate=True)
    except (binascii.Error, ValueError):
        raise _bad("the data URL is not base64.", where) from None


def _opened(data: bytes, where: str) -> Image.Image:
    """Its pixels; what it says of its type is not asked, only what it is."""
    is_known = data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    if not is_known:
        raise _bad(f"expected a picture: {FORMATS}.", where)
    try:
        return open_picture(data, max_bytes=MAX_PICTURE_BYTES, deadline_s=DECODE_TIMEOUT_S)
    except ImageError as error:
        raise _bad(str(error), where) from None


def _bad(message: str, where: str) -> ApiError:
    return ApiError(400, message, param=where, code="invalid_image")
