"""Stand-ins for what a board or card has: a tree of the kernel's files, a tegrastats, an NVML."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

FIXTURE = Path(__file__).parents[2] / "fixtures" / "tegrastats.txt"


def recorded_lines() -> list[str]:
    """Lines of tegrastats as boards printed them."""
    rows = [
        row for row in FIXTURE.read_text(encoding="utf-8").splitlines() if row and not row.startswith("#")
    ]
    return [row.split("\t")[3] for row in rows]


def write_files(root: Path, files: dict[str, str]) -> Path:
    """The files below a root, as the kernel has them."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def orin_nano(root: Path) -> Path:
    """The sensors of an Orin Nano: one INA3221 with three rails, zones, clocks, and 8 GB that it shares."""
    chip, zone = "sys/class/hwmon/hwmon1", "sys/class/thermal/thermal_zone"
    rails = {1: ("VDD_IN", 5000, 1200), 2: ("VDD_CPU_GPU_CV", 4992, 320), 3: ("VDD_SOC", 4984, 460)}
    files = {
        "sys/class/hwmon/hwmon0/name": "tmp451",
        f"{chip}/name": "ina3221",
        f"{chip}/in7_label": "sum of shunt voltages",
        f"{zone}0/type": "cpu-thermal",
        f"{zone}0/temp": "48906",
        f"{zone}1/type": "cv0-thermal",
        f"{zone}1/temp": "-256000",
        f"{zone}2/type": "tj-thermal",
        "sys/devices/system/cpu/cpufreq/policy0/related_cpus": "0 1 2 3",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1728000",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "729600",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1728000",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil",
        "sys/class/devfreq/17000000.gpu/cur_freq": "1020000000",
        "sys/class/devfreq/17000000.gpu/min_freq": "306000000",
        "sys/class/devfreq/17000000.gpu/max_freq": "1020000000",
        "sys/class/devfreq/15340000.vic/cur_freq": "115200000",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64",
        "proc/meminfo": "MemTotal:        7802192 kB\nMemAvailable:    6291456 kB",
    }
    for number, (name, millivolts, milliamperes) in rails.items():
        files[f"{chip}/in{number}_label"] = name
        files[f"{chip}/in{number}_input"] = str(millivolts)
        files[f"{chip}/curr{number}_input"] = str(milliamperes)
    return write_files(root, files)


def install_tegrastats(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    """A program of that name that prints these lines again and again, ten times faster than it was asked."""
    folder.mkdir(exist_ok=True)
    (folder / "lines").write_text("".join(f"{line}\n" for line in lines))
    program = folder / "tegrastats"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --interval ] || exit 64\n'
        f"while :; do while read -r line; do echo \"$line\"; sleep 0.01; done < '{folder}/lines'; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@cache
def _fake_nvml() -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler for the fake NVML")
    path = Path(mkdtemp(prefix="fake-nvml-")) / "libnvidia-ml.so.1"
    source = Path(__file__).parent / "fake_nvml.c"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    return str(path)


def install_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the fake library in the place of the driver's."""
    monkeypatch.setattr("tinyllava_edge.benchmarks.bench.nvml.LIBRARIES", (_fake_nvml(),))
