"""Power, clocks, temperatures and a GPU's memory, on stand-ins for a board and a card. No hardware."""

import os
import time
from pathlib import Path

import pytest

from tests.benchmarks.bench.boards import (
    install_nvml,
    install_tegrastats,
    orin_nano,
    recorded_lines,
    write_files,
)
from tinyllava_edge.benchmarks.bench.device_memory import CARD, SHARED, watched_device
from tinyllava_edge.benchmarks.bench.energy import energy_of
from tinyllava_edge.benchmarks.bench.environment import machine_card
from tinyllava_edge.benchmarks.bench.power import PowerWatch, find_power, includes, watched_power, whole_of
from tinyllava_edge.benchmarks.bench.state import read_clocks, read_temperatures


@pytest.fixture(autouse=True)
def no_sensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine itself may have."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("tinyllava_edge.benchmarks.bench.nvml.LIBRARIES", ())


def seen(watch: PowerWatch, count: int = 3) -> PowerWatch:
    deadline = time.monotonic() + 20
    while len(watch.samples) < count:
        assert time.monotonic() < deadline, "no samples came"
        time.sleep(0.01)
    return watch


def one(watts: dict[str, float] | None) -> float:
    assert watts is not None
    (value,) = watts.values()
    return value


def test_rails_of_an_ina3221_are_millivolts_times_milliamperes(tmp_path: Path) -> None:
    with watched_power(orin_nano(tmp_path)) as watch:
        watts = seen(watch).samples[0][1]
    assert watch.source == "ina3221"
    assert watts == {
        "VDD_IN": 6.0,
        "VDD_CPU_GPU_CV": pytest.approx(1.59744),
        "VDD_SOC": pytest.approx(2.29264),
    }
    assert whole_of(watts) == ("VDD_IN", 6.0)
    ended = len(watch.samples)
    time.sleep(0.1)
    assert len(watch.samples) == ended


def test_rails_that_may_not_be_read_are_one_word(tmp_path: Path) -> None:
    for path in orin_nano(tmp_path).rglob("curr*_input"):
        path.unlink()
        path.mkdir()  # reading it fails for root, too
    assert machine_card(tmp_path)["power"] == {"source": "denied", "rails": []}
    with watched_power(tmp_path) as watch:
        assert watch.joules(0.0, 1.0) is None
        assert watch.mean_so_far_w() is None


def test_a_machine_without_sensors_is_one_word(tmp_path: Path) -> None:
    assert machine_card(tmp_path)["power"] == {"source": "absent", "rails": []}
    assert machine_card(tmp_path)["clocks"] == {"cores": [], "gpu": []}
    assert machine_card(tmp_path)["temperatures_c"] == {}


def test_a_tegrastats_is_read_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tegrastats(tmp_path / "bin", monkeypatch, recorded_lines()[3:5])
    assert find_power(tmp_path).name == "tegrastats"
    with watched_power(tmp_path) as watch:
        samples = seen(watch, 4).samples
    assert [watts["VDD_IN"] for _, watts in samples[:4]] == [21.428, 6.966, 21.428, 6.966]
    assert includes("tegrastats", samples[0][1]).startswith("VDD_IN: all that")


def test_a_tegrastats_that_ends_at_once_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "bin", {"tegrastats": "#!/bin/sh\nexit 1"})
    (tmp_path / "bin" / "tegrastats").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    with watched_power(tmp_path) as watch:
        time.sleep(0.1)
    assert watch.joules(0.0, 1.0) is None


def test_cards_are_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvml(monkeypatch)
    with watched_power(tmp_path) as watch:
        watts = seen(watch).samples[0][1]
    assert watts == {"GPU 0 NVIDIA Fake": 40.0}  # the other one does not tell
    assert "without the host" in includes("nvml", watts)
    monkeypatch.setenv("FAKE_NVML", "none")
    assert find_power(tmp_path).name == "absent"


def test_joules_are_the_area_under_the_line_between_samples() -> None:
    """10 W rising to 30 W in one second, then falling to 10 W: by hand, with ends between the samples."""
    watch = PowerWatch("ina3221", [(0.0, {"A": 10.0}), (1.0, {"A": 30.0}), (2.0, {"A": 10.0})])
    assert one(watch.joules(0.0, 2.0)) == pytest.approx(40.0)
    assert one(watch.joules(0.5, 1.5)) == pytest.approx(25.0)
    assert one(watch.joules(0.25, 0.5)) == pytest.approx(17.5 * 0.25)
    assert one(watch.mean_so_far_w()) == pytest.approx(20.0)
    assert watch.joules(-0.1, 1.0) is None
    assert watch.joules(1.0, 2.1) is None
    assert watch.joules(1.0, 1.0) is None
    holed = PowerWatch("ina3221", [(0.0, {"A": 1.0}), (0.5, {"A": 1.0}), (1.6, {"A": 1.0})])
    assert holed.joules(0.1, 1.5) is None
    assert one(holed.joules(0.1, 0.4)) == pytest.approx(0.3)


def test_boards_without_a_common_input_say_what_is_summed() -> None:
    agx = {"VDD_GPU_SOC": 5.0, "VDD_CPU_CV": 3.0, "VIN_SYS_5V0": 5.5}
    assert whole_of(agx) == ("VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 13.5)
    assert "no common input" in includes("ina3221", agx)
    assert whole_of({"VDD_GPU": 38.0, "VIN": 124.0}) == ("VIN", 124.0)


def test_clocks_and_temperatures_of_a_board(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    assert read_temperatures(tmp_path) == {"cpu": 48.906, "cv0": None, "tj": None}
    clocks = read_clocks(tmp_path)
    assert clocks["cores"] == [
        {"cpus": "0 1 2 3", "mhz": 1728.0, "min_mhz": 729.6, "max_mhz": 1728.0, "governor": "schedutil"}
    ]
    assert [(gpu["name"], gpu["mhz"], gpu["min_mhz"], gpu["governor"]) for gpu in clocks["gpu"]] == [
        ("17000000.gpu", 1020.0, 306.0, None)
    ]


def test_shared_memory_counts_how_far_the_available_memory_fell(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    meminfo = tmp_path / "proc/meminfo"
    with watched_device(tmp_path) as watch:
        assert watch is not None
        assert watch.kind == SHARED
        for available in (4194304, 2621440, 6291456):  # KiB: it falls by 3.5 GiB, and comes back
            meminfo.write_text(f"MemTotal: 7802192 kB\nMemAvailable: {available} kB\n")
            time.sleep(0.2)
    assert watch.peak_bytes() == (6291456 - 2621440) << 10


@pytest.mark.parametrize(
    ("process", "used", "expected"),
    [(str(os.getpid()), None, 1 << 30), ("1", None, 0), (str(os.getpid()), str((1 << 64) - 1), 0)],
)
def test_a_card_counts_what_the_process_holds_or_what_was_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: str, used: str | None, expected: int
) -> None:
    """The fake holds 2 GiB from the start, so nothing is added; 2^64 - 1 is NVML's "not available"."""
    install_nvml(monkeypatch)
    monkeypatch.setenv("FAKE_NVML_PROCESS", process)
    if used is not None:
        monkeypatch.setenv("FAKE_NVML_USED", used)
    with watched_device(tmp_path) as watch:
        assert watch is not None
        assert watch.kind == CARD
        watch.process = os.getpid()
        time.sleep(0.3)
    assert watch.peak_bytes() == expected


def test_without_a_gpu_nothing_is_watched(tmp_path: Path) -> None:
    with watched_device(tmp_path) as watch:
        assert watch is None


def test_an_answer_without_a_rail_that_others_have_is_left_out() -> None:
    samples = [{"joules": {"VDD_IN": 4.0, "VDD_SOC": 1.0}, "generated_tokens": 2}]
    samples += [{"joules": {"VDD_SOC": 3.0}, "generated_tokens": 2}]
    found = energy_of(samples[::-1])
    assert found is not None
    assert (found["answers"], found["rails_j"], found["whole_j"]) == (1, {"VDD_IN": 4.0, "VDD_SOC": 1.0}, 4.0)
