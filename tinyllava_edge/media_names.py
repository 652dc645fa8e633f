"""Which texts of a record name a picture, a video or a sound: told by their ends."""

import re
from collections.abc import Mapping
from typing import Any

NO_PICTURE = re.compile(r"\.(mp4|webm|mkv|avi|mov|m4v|mpe?g|flv|wmv|wav|mp3|flac|ogg|m4a)$", re.IGNORECASE)
_PICTURE = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?|p[pgbn]m|avif|hei[cf])$", re.IGNORECASE)


def named_media(value: Any) -> str | None:
    """The first name of a picture, a video or a sound in a value of JSON, however deep."""
    inside = [value]
    while inside:
        each = inside.pop()
        if isinstance(each, Mapping | list):
            inside += each.values() if isinstance(each, Mapping) else each
        elif isinstance(each, str) and (_PICTURE.search(each) or NO_PICTURE.search(each)):
            return each
    return None
