"""One question about what a source shows, asked again and again; the newest frame is the one asked about."""

import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from tinyllava_edge.errors import ImageError, TinyLlavaEdgeError, UsageError
from tinyllava_edge.runtimes.logprobs import TokenLogprob
from tinyllava_edge.runtimes.timings import Timings

from .frames import Frame, Source
from .newest import REMEMBERED, Newest, rate
from .sources import open_source

if TYPE_CHECKING:
    from tinyllava_edge.runtimes.model import Model

_SIDE = 16  # of the grey picture by which a change is seen


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A frame and what was answered about it.

    Attributes:
        index: number of the frame, from 0, of all that came.
        time_s: when it came, in seconds since 1970.
        position_s: from the beginning of a video or stream; None in a folder.
        picture: the file of a folder's picture; None elsewhere.
        question: that was asked.
        answer: the whole text; None where the picture could not be read.
        error: why; None where it could.
        age_s: from when the frame came to the end of its answer.
        skipped: frames that nobody asked about since the one before this.
        fps_in: frames a second that come, by the last 64; None of the first one.
        fps_answered: answers a second, likewise.
        timings: of the answer, as `Stream.timings`; None where there is none.
        logprobs: of its tokens where they were asked for, as `Stream.logprobs`.
    """

    index: int
    time_s: float
    position_s: float | None
    picture: str | None
    question: str
    answer: str | None
    error: TinyLlavaEdgeError | None
    age_s: float
    skipped: int
    fps_in: float | None
    fps_answered: float | None
    timings: Timings | None
    logprobs: list[TokenLogprob] | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of the frames.

    Attributes:
        frames: that came.
        answered: that have an answer.
        failed: that could not be read.
        unchanged: that looked like the one before.
        skipped: for which no time was left, or that `every_s` left out.
        damaged: parts of a video that could not be decoded.
        reconnects: times that a stream was lost and found again.
        seconds: from the beginning.
    """

    frames: int
    answered: int
    failed: int
    unchanged: int
    skipped: int
    damaged: int
    reconnects: int
    seconds: float


class Due(NamedTuple):
    """A frame to ask about: its picture or what is wrong with it; how many before it were skipped."""

    frame: Frame
    image: Image.Image | None
    error: ImageError | None
    skipped: int


class Watch(Iterator[Seen]):
    """Answers as they come; closed at the end of a `with` statement, by `close`, or when it is dropped.

    While an answer is made a thread goes on reading, and keeps the newest frame alone: it is the next one,
    and those before it are skipped.
    """

    def __init__(
        self,
        model: "Model",
        source: "str | os.PathLike[str] | Source",
        question: str,
        *,
        every_s: float = 0.0,
        changed: float | None = None,
        every_frame: bool = False,
        limit: int | None = None,
        settings: dict[str, Any],
    ) -> None:
        if every_s < 0 or (limit is not None and limit < 1) or not 0 <= (changed or 0) <= 255:
            raise UsageError(
                f"every_s {every_s}, limit {limit}, changed {changed}: expected 0 or more seconds, 1 or more "
                "answers, a difference of 0 to 255."
            )
        self._source: Source = open_source(source) if isinstance(source, str | os.PathLike) else source
        if every_frame and not self._source.can_wait:
            self._source.close()
            raise UsageError(
                f"{self._source.name}: a camera does not wait. Every frame is had of files and folders alone."
            )
        self._model, self._question, self._settings = model, question, settings
        self._every_s, self._changed, self._limit = every_s, changed, limit
        self._began = time.monotonic()
        self._newest = Newest(self._source, wait=every_frame)
        self._answered = self._failed = self._unchanged = 0
        self._spent_s: float | None = None
        self._answered_s: deque[float] = deque(maxlen=REMEMBERED)
        self._last_at_s, self._last_index = float("-inf"), -1
        self._last_look: npt.NDArray[np.float32] | None = None

    def __next__(self) -> Seen:
        if (due := self.due()) is None:
            raise StopIteration
        return self.ask(due)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_newest"):
            self.close()

    def close(self) -> None:
        """Watch no more, in any thread; calling it twice is harmless, and `due` ends."""
        self._newest.close()
        self._spent_s = self._spent_s or time.monotonic() - self._began

    @property
    def summary(self) -> Summary:
        """So far."""
        frames = self._newest.count
        asked = self._answered + self._failed + self._unchanged
        return Summary(
            frames=frames,
            answered=self._answered,
            failed=self._failed,
            unchanged=self._unchanged,
            skipped=frames - asked,
            damaged=self._source.damaged,
            reconnects=self._source.reconnects,
            seconds=self._spent_s or time.monotonic() - self._began,
        )

    def due(self) -> Due | None:
        """Wait for the next frame to ask about, in any thread; None at the end, or an error: it is closed."""
        due = None
        try:
            due = self._next_due()
        finally:
            if due is None:
                self.close()
        return due

    def _next_due(self) -> Due | None:
        while self._spent_s is None and (self._limit is None or self._answered < self._limit):
            frame = self._newest.take()
            if frame is None:
                return None
            at_s = _at_s(frame)
            if at_s - self._last_at_s < self._every_s:
                continue
            image, error = _open(frame)
            if image is not None and self._is_as_before(image):
                self._unchanged += 1
                continue
            skipped = frame.index - self._last_index - 1
            self._last_at_s, self._last_index = at_s, frame.index
            return Due(frame, image, error, skipped)
        return None

    def _is_as_before(self, image: Image.Image) -> bool:
        """By `changed`; where it differs, it is what the next one is compared with."""
        if self._changed is None:
            return False
        before, now = self._last_look, _look(image)
        if before is not None and float(np.abs(now - before).mean()) < self._changed:
            return True
        self._last_look = now
        return False

    def ask(self, due: Due) -> Seen:
        """The model's answer about a frame of `due`."""
        frame, image, error, skipped = due
        answer, timings, logprobs = None, None, None
        if image is None:
            self._failed += 1
        else:
            stream = self._model.answer([(self._question, None)], image, **self._settings)
            answer, timings, logprobs = "".join(stream), stream.timings, stream.logprobs
            self._answered += 1
            self._answered_s.append(time.monotonic())
        return Seen(
            index=frame.index,
            time_s=frame.time_s,
            position_s=frame.position_s,
            picture=frame.name,
            question=self._question,
            answer=answer,
            error=error,
            age_s=time.monotonic() - frame.at_s,
            skipped=skipped,
            fps_in=rate(self._newest.times_s),
            fps_answered=rate(self._answered_s),
            timings=timings,
            logprobs=logprobs,
        )


def _at_s(frame: Frame) -> float:
    """The clock that `every_s` is of: a video's own where it has one."""
    return frame.at_s if frame.position_s is None else frame.position_s


def _open(frame: Frame) -> tuple[Image.Image | None, ImageError | None]:
    try:
        return frame.open(), None
    except ImageError as error:  # with its traceback it would hold the frame
        return None, error.with_traceback(None)


def _look(image: Image.Image) -> npt.NDArray[np.float32]:
    """A picture as 16 x 16 means of grey, 0 to 255."""
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)
