"""What is said of the machine and of who else uses it, on a kernel's files written here. No model."""

import os
import shutil
from pathlib import Path

import pytest

from tinyllava_edge.benchmarks.bench.environment import machine_card
from tinyllava_edge.benchmarks.bench.machine_load import (
    busy_line,
    core_mhz,
    evict,
    read_cpu_times,
    resident_share,
    shares_between,
    watch,
)

TICKS = os.sysconf("SC_CLK_TCK")


def kernel(root: Path, *, user: int, steal: int, own: int, worker: int, waiting_us: int) -> Path:
    """Counters in ticks, as Linux writes them; a process's name may have spaces and brackets."""
    files = {
        "proc/stat": f"cpu  {user} 0 0 1000 0 0 0 {steal} 0 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n",
        "proc/self/stat": f"10 (py (thon) R 1 10 10 0 -1 4194304 1 0 0 0 {own} 0 0 0 20 0 1 0 5 6\n",
        "proc/77/stat": f"77 (worker) S 1 10 10 0 -1 4194304 1 0 0 0 {worker} 0 0 0 20 0 1 0 5 6\n",
        "proc/pressure/cpu": f"some avg10=1.00 avg60=0.00 avg300=0.00 total={waiting_us}\nfull avg10=0.00\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_others_have_what_neither_this_process_nor_its_workers_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllava_edge.benchmarks.bench.machine_load.os.cpu_count", lambda: 2)
    clock = iter([100.0, 110.0])  # ten seconds, so 20 of processor time
    monkeypatch.setattr("tinyllava_edge.benchmarks.bench.machine_load.time.monotonic", lambda: next(clock))
    kernel(tmp_path, user=1000, steal=5, own=10, worker=20, waiting_us=0)
    before = read_cpu_times([77], tmp_path)
    used = {"user": 1000 + 10 * TICKS, "own": 10 + 1 * TICKS, "worker": 20 + 5 * TICKS}
    kernel(tmp_path, steal=5 + 2 * TICKS, waiting_us=2_500_000, **used)
    shares = shares_between(before, read_cpu_times([77], tmp_path))
    assert shares is not None
    assert shares["others"] == pytest.approx((10 - 1 - 5) / 20, abs=1e-3)
    assert shares["stolen"] == pytest.approx(2 / 20)
    assert shares["waiting"] == pytest.approx(0.25)
    assert shares["disturbed"]


def test_a_system_without_these_files_says_nothing(tmp_path: Path) -> None:
    assert read_cpu_times([], tmp_path) is None
    assert shares_between(None, None) is None
    assert core_mhz(tmp_path) is None


def test_only_a_busy_machine_is_spoken_of() -> None:
    calm = {"load_average_1_min": 0.1, "others": 0.02, "stolen": 0.0, "disturbed": False}
    assert busy_line(calm) is None
    assert busy_line({**calm, "disturbed": None}) is None
    busy = busy_line({**calm, "others": 0.5, "disturbed": True})
    assert busy is not None
    assert "50% of the processors" in busy
    assert watch(0.01)["mhz"] == core_mhz() or core_mhz() is not None


def test_the_card_has_what_decides_speed_and_none_where_the_kernel_is_silent(tmp_path: Path) -> None:
    cpu = tmp_path / "sys/devices/system/cpu"
    (cpu / "cpu0/cpufreq").mkdir(parents=True)
    (cpu / "cpu0/cpufreq/scaling_governor").write_text("schedutil\n")
    (cpu / "intel_pstate").mkdir()
    (cpu / "intel_pstate/no_turbo").write_text("1\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12"\n')
    card = machine_card(tmp_path)
    assert card["cpu_settings"]["frequency_governor"] == "schedutil"
    assert card["cpu_settings"]["turbo"] is False
    assert card["cpu_settings"]["max_khz"] is None
    assert card["distribution"] == "Debian GNU/Linux 12"
    assert card["memory_settings"] == {"swap_bytes": None, "transparent_hugepage": None}
    assert {"onnxruntime", "llama-cpp-python", "tensorrt"} <= set(card["versions"])
    if shutil.which("git") and (Path(__file__).parents[3] / ".git").exists():
        assert len(card["source"]["commit"]) == 40


def test_a_file_that_was_read_leaves_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20))
    path.read_bytes()
    with path.open("rb") as file:
        assert resident_share(file.fileno()) == 1
        if not evict([path]):
            pytest.skip("the pages of this file system stay in memory")
        assert resident_share(file.fileno()) <= 0.02


def test_a_file_that_is_mapped_is_not_called_cold(tmp_path: Path) -> None:
    import mmap

    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(bytes(mapped)) == 1 << 20  # every page is in this process's table now
        assert not evict([path])
