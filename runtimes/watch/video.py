"""Video through PyAV, which brings FFmpeg's libraries: a file, a camera of this machine or of the network.

A file's parser is one of those that are named here, none of which opens other files, and a picture over the
limits of `image.py` is refused before it is decoded.
"""

import ctypes
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from threading import Event
from typing import Any

import av
from av.error import ExitError, FFmpegError
from PIL import Image

from tinyllava_edge.console import note
from tinyllava_edge.errors import CameraError, ImageError
from tinyllava_edge.picture_formats import MAX_PIXELS, MAX_SIDE
from tinyllava_edge.user_files import open_user_file

from .frames import Frame

MAX_VIDEO_BYTES = 1 << 42
DATA_S = 10.0  # without a frame, a camera or stream is lost
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # before a lost stream is asked for again
_LATE = f"no picture within {DATA_S:g} s"
_LEAP_S = 60.0  # a file's clock that leaps further is damaged, and begins anew
_GUESSED_RATE = 25
_FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,ivf,h264,hevc,m4v,mjpeg"
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}  # counter-clockwise, as FFmpeg counts
_NETWORK = "rtsp,rtsps,rtp,srtp,tcp,udp,tls,crypto"
_SECRET = re.compile(r"(?<=://)[^/?#]*@")  # up to the last @, as FFmpeg reads it


def open_file(path: str) -> "Video":
    """A video file, which is shown at its own pace; errors as of `open_source`."""
    open_user_file(path, most=MAX_VIDEO_BYTES).close()
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    return Video(path, lambda: av.open(f"file:{path}", options=options), keeps_time=True)


def open_camera(path: str) -> "Video":
    """A camera of this machine, by V4L2."""
    return Video(path, lambda: av.open(path, format="v4l2", timeout=DATA_S))


def open_stream(url: str) -> "Video":
    """A camera of the network, by RTSP over TCP; asked for again when it is lost."""
    options = {"rtsp_transport": "tcp", "protocol_whitelist": _NETWORK}
    name = _SECRET.sub("", url)
    return Video(name, lambda: av.open(url, options=options, timeout=DATA_S), reconnects=True)


class Video:
    """A source of decoded frames; see `Source`.

    Args:
        name: for people.
        opening: gives PyAV's container.
        keeps_time: frames wait for their time, as in front of a camera, unless all count.
        reconnects: what is lost is opened again.
    """

    def __init__(
        self, name: str, opening: Callable[[], Any], *, keeps_time: bool = False, reconnects: bool = False
    ) -> None:
        self.name, self.can_wait = name, keeps_time
        self.damaged = self.reconnects = 0
        self._opening, self._keeps_time, self._comes_back = opening, keeps_time, reconnects
        self._number = count()
        self._given = 0
        self._is_read = False
        began = time.monotonic()
        try:
            self._container, self._stream = self._open()
        except (FFmpegError, UnicodeError) as error:
            is_late = not keeps_time and time.monotonic() - began >= DATA_S  # which FFmpeg may call otherwise
            reason = _LATE if is_late else _reason(error)
            raise CameraError(f"{name}: cannot be opened: {reason}. Check it.") from None

    def frames(self, ended: Event, *, wait: bool) -> Iterator[Frame]:
        """See `Source`."""
        self._is_read = True
        try:
            yield from self._frames(ended, wait=wait)
        finally:
            self._is_read = False

    def close(self) -> None:
        """See `Source`; what a thread waits in is never freed: FFmpeg would do so under its feet."""
        if self._is_read:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._container))
        else:
            self._container.close()

    def _frames(self, ended: Event, *, wait: bool) -> Iterator[Frame]:
        pause = FIRST_PAUSE_S
        while True:
            before, why = self._given, "the stream ended"
            try:
                yield from self._play(ended, keeps_time=self._keeps_time and not wait)
            except FFmpegError as error:
                why = _reason(error)
                if not self._comes_back and not ended.is_set():
                    raise CameraError(
                        f"{self.name}: lost after {self._given:,} frames: {why}. Check it."
                    ) from None
            if ended.is_set():
                return
            if not self._comes_back:
                break
            pause = FIRST_PAUSE_S if self._given > before else min(2 * pause, LONGEST_PAUSE_S)
            self._connect_again(ended, why, pause)
        if not self._given:
            found = f", {self.damaged:,} parts are damaged" if self.damaged else ""
            raise CameraError(f"{self.name}: no frame in it{found}. Give a video that plays.")

    def _open(self) -> tuple[Any, Any]:
        container = self._opening()
        try:
            stream = container.streams.best("video")
            if stream is None:
                raise CameraError(f"{self.name}: no video in it. Give one that has pictures.")
            context = stream.codec_context
            if context is None:
                raise CameraError(
                    f"{self.name}: a codec that FFmpeg does not know. Convert it, to H.264 say."
                )
            if max(context.width, context.height) > MAX_SIDE or context.width * context.height > MAX_PIXELS:
                raise CameraError(
                    f"{self.name}: frames of {context.width} x {context.height}: expected at most {MAX_SIDE} "
                    f"a side and {MAX_PIXELS // 1_000_000} megapixels. Scale it down."
                )
            context.options = {"max_pixels": str(MAX_PIXELS)}  # a stream may change its size
        except BaseException:
            container.close()
            raise
        return container, stream

    def _play(self, ended: Event, *, keeps_time: bool) -> Iterator[Frame]:
        """Frames until the end; an FFmpegError where it does not go on, or none comes for too long."""
        clock, last = _Clock(self._stream.average_rate), time.monotonic()
        for picture in self._decoded(ended):
            if picture is None:
                if not self.can_wait and time.monotonic() - last > DATA_S:
                    raise ExitError(0, "")
                continue
            position_s = clock.position_s(picture.time)
            if keeps_time and ended.wait(max(0.0, clock.due_s - time.monotonic())):
                return
            last = time.monotonic()
            self._given += 1
            yield Frame(
                index=next(self._number),
                at_s=last,
                time_s=time.time(),
                position_s=position_s,
                open=partial(_as_rgb, picture),
            )

    def _decoded(self, ended: Event) -> Iterator[Any]:
        """PyAV's frames, None for a part without a whole one."""
        for packet in self._container.demux(self._stream):
            if ended.is_set():
                return
            try:
                pictures = packet.decode()
            except FFmpegError:
                self.damaged += 1
                pictures = []
            whole = [picture for picture in pictures if not picture.is_corrupt]
            self.damaged += len(pictures) - len(whole)
            yield from whole or (None,)

    def _connect_again(self, ended: Event, why: str, pause: float) -> None:
        lost = time.monotonic()
        note(f"{self.name}: lost ({why}); it is asked for again, first in {pause:g} s", is_fault=True)
        self._container.close()
        while not ended.wait(pause):
            try:
                self._container, self._stream = self._open()
            except FFmpegError:
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            self.reconnects += 1
            note(f"{self.name}: back after {time.monotonic() - lost:.1f} s")
            return


class _Clock:
    """A video's own time, from its first frame; where it leaps, it goes on as if it had not."""

    def __init__(self, rate: Any) -> None:
        self._step_s = 1 / float(rate or _GUESSED_RATE)
        self._began = time.monotonic()
        self._last: float | None = None
        self._offset_s = self._now_s = 0.0

    def position_s(self, stamp: float | None) -> float:
        """Seconds of a frame, of which the file says `stamp`."""
        shown = self._now_s + self._step_s if self._last is not None else 0.0
        if stamp is not None:
            if self._last is None or not 0 <= stamp + self._offset_s - self._now_s <= _LEAP_S:
                self._offset_s = shown - stamp
            shown = stamp + self._offset_s
        self._last = self._now_s = shown
        return shown

    @property
    def due_s(self) -> float:
        """When the last frame is to be shown, of `time.monotonic`."""
        return self._began + self._now_s


def _as_rgb(picture: Any) -> Image.Image:
    """A frame as people see it: phones write how it was held.

    Raises:
        ImageError: it has a form that cannot be shown as colours.
    """
    try:
        image: Image.Image = picture.to_image()
    except (FFmpegError, ValueError, MemoryError) as error:
        raise ImageError(f"a frame has no picture ({error}). Convert the video, to H.264 say.") from None
    turn = _TURNS.get(round(picture.rotation) % 360)
    return image if turn is None else image.transpose(turn)


def _reason(error: FFmpegError | UnicodeError) -> str:
    if isinstance(error, ExitError):
        return _LATE
    return str(getattr(error, "strerror", None) or error).rstrip(".")
