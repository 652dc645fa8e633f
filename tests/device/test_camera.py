"""A camera of this machine, by V4L2. Not yet run on hardware.

TINYLLAVA_EDGE_REQUIRE=camera python -m pytest tests/device/test_camera.py
"""

import pytest

from tinyllava_edge import open_bundle

pytestmark = [pytest.mark.device("camera")]


def test_a_camera_is_watched() -> None:
    """V4L2 hands out frames of a camera at /dev/video0, which this machine has not."""
    pytest.importorskip("av")
    with open_bundle("nano") as model, model.watch("/dev/video0", "What is this?", limit=3) as watch:
        seen = list(watch)
    assert len(seen) == 3
    assert all(one.age_s < 5 for one in seen)
