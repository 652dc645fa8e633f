"""A thread that reads a source and keeps the newest frame only."""

from collections import deque
from threading import Condition, Event, Thread

from .frames import Frame, Source

_LOOK_S = 0.5  # Ctrl-C does not wake a waiting thread everywhere
_LAST_WORDS_S = 1.0  # for the thread; one that waits for a camera is left to it
REMEMBERED = 64  # frames whose times say how many come a second


class Newest:
    """The newest frame of a source; whoever takes it leaves none behind.

    Args:
        source: read by a thread of its own, from now on.
        wait: a frame that is not taken yet keeps the next one from coming.

    Attributes:
        count: frames that came so far.
        times_s: of the last ones, as `Frame.at_s`.
    """

    def __init__(self, source: Source, *, wait: bool) -> None:
        self.count = 0
        self.times_s: deque[float] = deque(maxlen=REMEMBERED)
        self._source, self._wait = source, wait
        self._ended = Event()
        self._changed = Condition()
        self._frame: Frame | None = None
        self._fault: BaseException | None = None
        self._thread = Thread(target=self._read, name=f"watch {source.name}", daemon=True)
        self._thread.start()

    def take(self) -> Frame | None:
        """The newest frame that was not taken, waited for; None where no more come.

        Raises:
            CameraError: or what else ended the source; the frames before were all given.
        """
        with self._changed:
            while self._frame is None and self._thread.is_alive() and not self._ended.is_set():
                self._changed.wait(_LOOK_S)
            frame, self._frame = self._frame, None
            self._changed.notify_all()
        if frame is None and self._fault is not None:
            raise self._fault
        return frame

    def close(self) -> None:
        """End the thread; calling it twice is harmless."""
        with self._changed:
            self._ended.set()
            self._changed.notify_all()
        self._thread.join(_LAST_WORDS_S)
        if not self._thread.is_alive():
            self._source.close()

    def _read(self) -> None:
        try:
            for frame in self._source.frames(self._ended, wait=self._wait):
                self._put(frame)
        except BaseException as fault:
            self._fault = fault
        finally:
            with self._changed:
                self._ended.set()
                self._changed.notify_all()

    def _put(self, frame: Frame) -> None:
        with self._changed:
            while self._wait and self._frame is not None and not self._ended.is_set():
                self._changed.wait()
            self._frame = frame
            self.count = frame.index + 1
            self.times_s.append(frame.at_s)
            self._changed.notify_all()


def rate(times_s: "deque[float]") -> float | None:
    """How many a second came, by the times of the last ones; None of fewer than two."""
    if len(times_s) < 2 or times_s[-1] <= times_s[0]:
        return None
    return (len(times_s) - 1) / (times_s[-1] - times_s[0])
