"""How a board is set, from files as the kernel and containers have them."""

from pathlib import Path

import pytest

from tests.core.test_device import write_tree
from tinyllava_edge.board_state import BoardState, Clock, read_board_state

GPU = "sys/class/devfreq/{}/{}_freq"
RAILS = "sys/class/hwmon/hwmon1"


def frequencies(name: str, now: int, least: int, most: int) -> dict[str, str]:
    return {GPU.format(name, kind): f"{hz}\n" for kind, hz in (("cur", now), ("min", least), ("max", most))}


@pytest.mark.parametrize("name", ["17000000.gpu", "17000000.ga10b", "gpu-gpc-0"])
def test_a_gpus_clock_is_found_under_each_of_its_names(tmp_path: Path, name: str) -> None:
    board = read_board_state(write_tree(tmp_path, frequencies(name, 306000000, 306000000, 1020000000)))
    assert board.gpu_clock == Clock(now_hz=306000000, most_hz=1020000000, held=False)
    assert board.clocks_held is False


def test_jetson_clocks_is_on_where_gpu_and_processor_are_held(tmp_path: Path) -> None:
    """As jetson_stats tells it: the least frequency is the most, of both."""
    policy = "sys/devices/system/cpu/cpufreq/policy{}/scaling_{}_freq"
    held = {policy.format(0, kind): "1728000\n" for kind in ("cur", "min", "max")}
    write_tree(tmp_path, held | frequencies("17000000.gpu", 1020000000, 1020000000, 1020000000))
    board = read_board_state(tmp_path)
    assert board.cpu_clock == Clock(now_hz=1_728_000_000, most_hz=1_728_000_000, held=True)
    assert board.clocks_held is True
    write_tree(tmp_path, frequencies("17000000.gpu", 1020000000, 306000000, 1020000000))
    assert read_board_state(tmp_path).clocks_held is False


def test_another_devices_clock_is_not_the_gpus(tmp_path: Path) -> None:
    assert read_board_state(write_tree(tmp_path, frequencies("bwmgr", 1, 1, 1))).gpu_clock is None


def test_a_rail_needs_its_numbers_and_a_name(tmp_path: Path) -> None:
    files = {
        f"{RAILS}/in{n}_label": text for n, text in enumerate(("VDD_IN\n", "NC\n", "VDD_SOC\n"), start=1)
    }
    files[f"{RAILS}/name"] = "ina3221\n"
    files |= {f"{RAILS}/{kind}{n}_input": "1\n" for n in (1, 2) for kind in ("in", "curr")}
    assert read_board_state(write_tree(tmp_path, files)).rails == ("VDD_IN",)


def test_swap_tools_and_where_this_runs(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "SwapTotal: 3901440 kB\n",
        "usr/bin/tegrastats": "",
        ".dockerenv": "",
        "dev/dxg": "",
    }
    board = read_board_state(write_tree(tmp_path, files))
    assert (board.swap_bytes, board.tegrastats) == (3901440 << 10, "/usr/bin/tegrastats")
    assert board.container
    assert board.wsl


def test_an_empty_tree_is_unknown_and_not_an_error(tmp_path: Path) -> None:
    assert read_board_state(tmp_path) == BoardState(
        swap_bytes=None,
        gpu_clock=None,
        cpu_clock=None,
        rails=(),
        tegrastats=None,
        container=False,
        wsl=False,
    )
    assert read_board_state(tmp_path).clocks_held is None
