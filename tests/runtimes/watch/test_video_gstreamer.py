"""A camera of the network as GStreamer has it: H.264 over RTSP, on loopback. nano, CPU.

apt-get install gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-ugly python3-gi
"""

import subprocess
from collections.abc import Iterator

import pytest

from tinyllava_edge import open_bundle

SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's bindings are for its own
SERVER = """
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service("0")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=25/1 "
    "! x264enc tune=zerolatency key-int-max=25 ! rtph264pay name=pay0 )"
)
factory.set_shared(True)
server.get_mount_points().add_factory("/camera", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@pytest.fixture
def url() -> Iterator[str]:
    try:
        server = subprocess.Popen([SYSTEM_PYTHON, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        pytest.skip(f"there is no {SYSTEM_PYTHON}")
    with server:
        assert server.stdout is not None
        if not (port := server.stdout.readline().strip()):
            pytest.skip("GStreamer's RTSP server is not installed")
        yield f"rtsp://127.0.0.1:{port}/camera"
        server.kill()


@pytest.mark.long
def test_a_camera_of_gstreamer_is_watched(url: str) -> None:
    with (
        open_bundle("nano", threads=1) as model,
        model.watch(url, "What is this?", every_s=0.2, limit=5) as watch,
    ):
        seen = list(watch)
    assert len(seen) == 5
    assert all(0 < one.age_s < 2 for one in seen)
    assert watch.summary.frames > 15
    assert seen[1].skipped > 0
