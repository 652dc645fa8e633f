"""Videos for the tests, and a camera of the network on loopback: RTSP over TCP, JPEG in RTP."""

import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import av
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[3]
CAT, EMOJI = ROOT / "docs" / "pictures" / "cat.jpg", ROOT / "docs" / "pictures" / "emoji.webp"
_SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track1\r\n"


def frame_of(path: Path, size: tuple[int, int] = (160, 120)) -> av.VideoFrame:
    with Image.open(path) as image:
        return av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB").resize(size)), format="rgb24")


def write_video(
    path: Path, pictures: Sequence[Path], *, hold: int = 5, rate: int = 25, codec: str = "mpeg4"
) -> Path:
    """A video that shows each picture for so many frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "1"})  # every frame by itself
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for picture in pictures:
            for _ in range(hold):
                container.mux(stream.encode(frame_of(picture)))
        container.mux(stream.encode())
    return path


class Camera:
    """A server that shows a picture to every client, 50 times a second.

    Attributes:
        url: where it is.
        status: what DESCRIBE is answered.
        frames: after which it hangs up on a client, each in turn; the last one stays.
        silent: it says nothing more, and does not hang up either.
        clients: that played so far.
    """

    def __init__(self, frames: Sequence[int] = ()) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._listening.getsockname()[1]}/camera"
        self.status = "200 OK"
        self.frames = list(frames)
        self.clients = 0
        self.silent = False
        self._ended = threading.Event()

    @contextmanager
    def serving(self) -> Iterator["Camera"]:
        thread = threading.Thread(target=self._accept)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                try:
                    if self._talk(connection):
                        self.clients += 1
                        self._play(connection, self.frames.pop(0) if self.frames else 10**9)
                except OSError:  # the client has gone
                    continue

    def _talk(self, connection: socket.socket) -> bool:
        """Answer until PLAY."""
        self._be_silent()
        file = connection.makefile("rb")
        while line := file.readline():
            method, headers = line.split()[0].decode(), b""
            while (header := file.readline()).strip():
                headers += header
            [sequence] = re.findall(rb"CSeq: *(\d+)", headers)
            more, body, status = "", "", "200 OK"
            if method == "DESCRIBE":
                status, body = self.status, _SDP
                more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            elif method == "SETUP":
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            head = f"RTSP/1.0 {status}\r\nCSeq: {sequence.decode()}\r\nSession: 1\r\n{more}\r\n"
            connection.sendall((head + body).encode())
            if method == "PLAY":
                return True
        return False

    def _play(self, connection: socket.socket, most: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
            packets.bind(("127.0.0.1", 0))
            packets.settimeout(0.02)
            where = f"rtp://127.0.0.1:{packets.getsockname()[1]}?pkt_size=1200"
            with av.open(where, "w", format="rtp") as container:
                stream = container.add_stream("mjpeg", rate=50)
                stream.width, stream.height, stream.pix_fmt = 160, 120, "yuvj420p"
                for _ in zip(range(most), count(), strict=False):
                    if self._ended.is_set():
                        return
                    container.mux(stream.encode(frame_of(EMOJI)))
                    try:
                        while packet := packets.recv(65536):
                            if packet[1] & 127 == 26:  # no report of RTCP
                                connection.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
                    except TimeoutError:
                        continue
        self._be_silent()

    def _be_silent(self) -> None:
        while self.silent and not self._ended.wait(0.01):
            pass
