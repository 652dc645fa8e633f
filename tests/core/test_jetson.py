"""What a Jetson is told by where most of its files are hidden; the rest in test_device.py."""

from pathlib import Path

import pytest

from tests.core.test_device import write_tree
from tinyllava_edge.boards import BOARDS
from tinyllava_edge.jetson import JETPACKS, TEGRAS, read_jetson


def test_a_container_cannot_hide_the_kernels_name(tmp_path: Path) -> None:
    assert read_jetson(write_tree(tmp_path, {"proc/sys/kernel/osrelease": "6.8.0-generic\n"})) is None
    jetson = read_jetson(write_tree(tmp_path, {"proc/sys/kernel/osrelease": "5.15.148-tegra\n"}))
    assert jetson is not None
    assert (jetson.model, jetson.l4t, jetson.chip, jetson.cuda) == ("unknown", None, None, None)


@pytest.mark.parametrize(
    ("release", "jetpack", "cuda"),
    [
        ("36 (release), REVISION: 3.0", "6.0", "12-2"),
        ("36 (release), REVISION: 4.2", "6.1 rev 1", "12-6"),
        ("36 (release), REVISION: 5.2", "6.2.3", "12-6"),
        ("38 (release), REVISION: 4.0", "7.1", "13-0"),
        ("39 (release), REVISION: 2.1", "7.2.1", "13-2"),
        ("35 (release), REVISION: 4.1", "5.1.2", None),
        ("41 (release), REVISION: 1.2", None, None),
    ],
)
def test_a_release_has_its_jetpack_and_its_cuda(
    tmp_path: Path, release: str, jetpack: str | None, cuda: str | None
) -> None:
    """Origins: docs/sources/tensorrt.md#jetpack-releases."""
    jetson = read_jetson(write_tree(tmp_path, {"etc/nv_tegra_release": f"# R{release}, GCID: 1\n"}))
    assert jetson is not None
    assert (jetson.jetpack, jetson.cuda) == (jetpack, cuda)


def test_every_board_of_ours_has_a_chip_that_we_know() -> None:
    boards = {board.sm.replace(".", "") for board in BOARDS.values() if board.architecture == "aarch64"}
    assert boards <= set(TEGRAS.values())
    assert all(len(release.split(".")) == 3 for release in JETPACKS)
