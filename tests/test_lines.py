"""Lines are a cost: the source stays within a bound, by room.

A bound is raised only in a commit of its own that says what users get for it, and lowered with each clean-up.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Lines of *.py, blank ones and docstrings included.
INSTALLED = {
    "tinyllava_edge": 9670,
    "tinyllava_edge/checkpoint": 3510,
    "tinyllava_edge/model": 2495,
    "export": 5570,
    "runtimes": 7510,
    "runtimes/serve": 2360,
    "runtimes/trt": 3761,
    "runtimes/watch": 910,
    "train": 6235,
    "benchmarks/verify": 4920,
    "benchmarks/bench": 6730,
    "benchmarks/evals": 4365,
    "benchmarks/ablate": 940,
    "benchmarks/card": 1070,
    "benchmarks/hardware": 1250,
}
FROM_THE_CHECKOUT = {"tools": 4590, "examples": 2135}
ROOMS = {**INSTALLED, **FROM_THE_CHECKOUT}


def room_of(path: Path) -> str:
    """The innermost room that a file of the source stands in."""
    folders = [parent.as_posix() for parent in path.parents]
    return next((folder for folder in folders if folder in ROOMS), folders[-2])


def lines_by_room() -> dict[str, int]:
    lines = dict.fromkeys(ROOMS, 0)
    for top in {room.split("/")[0] for room in ROOMS}:
        for path in (ROOT / top).rglob("*.py"):
            relative = path.relative_to(ROOT)
            if not any((ROOT / parent).is_symlink() for parent in relative.parents):
                room = room_of(relative)
                lines[room] = lines.get(room, 0) + path.read_text(encoding="utf-8").count("\n")
    return lines


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_within_its_bound(room: str) -> None:
    assert lines_by_room()[room] <= ROOMS[room]


def test_no_source_stands_outside_the_rooms() -> None:
    outside = {room: lines for room, lines in lines_by_room().items() if room not in ROOMS}
    assert outside == {"benchmarks": 1}  # its __init__.py


def test_the_lines_are_as_long_as_they_were_when_the_bounds_were_set() -> None:
    assert "\nline-length = 110\n" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_sums_are_within_what_was_set_out() -> None:
    assert sum(INSTALLED.values()) <= 61_296
    assert sum(ROOMS.values()) <= 68_021
