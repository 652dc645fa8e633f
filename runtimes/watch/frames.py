"""What is watched, whatever it is: a source, and the frames that come from it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import Protocol

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture of a source.

    Attributes:
        index: its number of all that the source had, from 0.
        at_s: of `time.monotonic`, when it was here.
        time_s: the same moment in seconds since 1970.
        position_s: from the beginning of a video or stream; None in a folder.
        name: of a picture's file; None elsewhere.
        open: decodes it or makes RGB of it; an ImageError where that cannot be.
    """

    index: int
    at_s: float
    time_s: float
    position_s: float | None = None
    name: str | None = None
    open: Callable[[], Image.Image] = field(repr=False)


class Source(Protocol):
    """What is watched.

    Attributes:
        name: for people, without a password.
        can_wait: whether a frame that is not taken yet keeps the next one from coming; no camera can.
        damaged: parts that could not be decoded so far.
        reconnects: times that a stream was lost and found again.
    """

    name: str
    can_wait: bool
    damaged: int
    reconnects: int

    def frames(self, ended: Event, *, wait: bool) -> Iterator[Frame]:
        """Frames as they come, until the end or until `ended`; for one thread.

        Args:
            ended: nobody wants more.
            wait: every one counts, so that nothing is left out, and a file keeps no time of its own.

        Raises:
            CameraError: there is no more to come, and that is not how a source ends.
        """
        ...

    def close(self) -> None:
        """Free what it holds, where no thread reads it."""
        ...
