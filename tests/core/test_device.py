"""What machine is this, read from trees of files as kernels and boards write them."""

import os
from pathlib import Path

import pytest

from tinyllava_edge import device
from tinyllava_edge.jetson import Jetson

X86 = """processor\t: {}
model name\t: Intel(R) Core(TM) i7-8550U CPU @ 1.80GHz
flags\t\t: fpu sse2 avx avx2 fma f16c

"""
FOUR_CPUS = "".join(map(X86.format, range(4)))
ORIN = """processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes asimdhp asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd42
"""


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def _four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})


@pytest.mark.usefixtures("_four_cpus")
def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {topology.format(cpu): f"{cpu % 2},{cpu % 2 + 2}\n" for cpu in range(4)}
    cpu = device.read_cpu(write_tree(tmp_path, {"proc/cpuinfo": FOUR_CPUS, **siblings}))
    assert cpu.model == "Intel(R) Core(TM) i7-8550U CPU @ 1.80GHz"
    assert cpu.features == ("avx", "avx2", "fma", "f16c")
    assert (cpu.logical_cpus, cpu.physical_cores, cpu.usable_cores) == (4, 2, 2)


@pytest.mark.usefixtures("_four_cpus")
def test_the_tightest_quota_above_a_version_2_group_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/docker/abc\n",
        "sys/fs/cgroup/docker/abc/cpu.max": "max 100000\n",
        "sys/fs/cgroup/docker/cpu.max": "250000 100000\n",
    }
    cpu = device.read_cpu(write_tree(tmp_path, files))
    assert (cpu.quota, cpu.usable_cores) == (2.5, 2)


@pytest.mark.usefixtures("_four_cpus")
def test_a_version_1_quota_below_one_cpu_leaves_one_core(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/box\n3:memory:/box\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    }
    cpu = device.read_cpu(write_tree(tmp_path, files))
    assert (cpu.quota, cpu.usable_cores) == (0.5, 1)


def test_a_control_group_limits_the_memory(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal:       8000000 kB\nMemFree: 1 kB\nMemAvailable:    6000000 kB\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "2000000000\n",
        "sys/fs/cgroup/memory.current": "500000000\n",
    }
    memory = device.read_machine(write_tree(tmp_path, files)).memory
    assert memory == device.Memory(total_bytes=2_000_000_000, available_bytes=1_500_000_000)


def test_a_jetson_is_named_with_its_jetpack_and_power_mode(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": ORIN,
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
        "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    }
    machine = device.read_machine(write_tree(tmp_path, files))
    assert machine.cpu.model == "Arm Cortex-A78AE"
    assert machine.cpu.features == ("asimd", "asimdhp", "asimddp")
    assert machine.jetson == Jetson(
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        l4t="36.4.3",
        jetpack="6.2",
        power_mode="MAXN_SUPER",
        module="p3767-0005",
        tensorrt="10.3.0.30",
        chip="tegra234",
    )


@pytest.mark.parametrize(
    ("compatible", "module"),
    [
        ("nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0", "p3767-0005"),
        ("nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264", "p3834-0008"),
        ("nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0", None),
        ("nvidia,tegra234\0", None),
    ],
)
def test_the_module_is_told_from_its_carrier_board(
    tmp_path: Path, compatible: str, module: str | None
) -> None:
    jetson = device.read_machine(write_tree(tmp_path, {"proc/device-tree/compatible": compatible})).jetson
    assert jetson is not None
    assert jetson.module == module


@pytest.mark.parametrize(
    ("line", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023",
            "535.129.03",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build",
            "540.4.0",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build", "580.82.07"),
        ("", None),
    ],
)
def test_the_kernels_driver_has_its_version(tmp_path: Path, line: str, version: str | None) -> None:
    assert device.read_driver(write_tree(tmp_path, {"proc/driver/nvidia/version": line})) == version


def test_a_gpu_shows_by_its_device_file(tmp_path: Path) -> None:
    assert not device.has_nvidia_gpu(tmp_path)
    assert device.has_nvidia_gpu(write_tree(tmp_path, {"dev/nvhost-gpu": ""}))


@pytest.mark.parametrize(
    "driver", ["usr/lib/wsl/lib/libcuda.so.1", "usr/lib/wsl/drivers/nv_dispi.inf_amd64_1/libcuda.so.1.1"]
)
def test_a_gpu_shows_in_wsl2_which_has_no_device_file_of_nvidia(tmp_path: Path, driver: str) -> None:
    write_tree(tmp_path, {"dev/dxg": "", "usr/lib/wsl/drivers/iigd_dch.inf_amd64_1/libd3d12.so": ""})
    assert not device.has_nvidia_gpu(tmp_path)  # Intel's
    assert device.has_nvidia_gpu(write_tree(tmp_path, {driver: ""}))


def test_an_unknown_l4t_release_has_an_unknown_jetpack(tmp_path: Path) -> None:
    release = "# R41 (release), REVISION: 1.2, GCID: 1, BOARD: generic, EABI: aarch64, DATE: 2030\n"
    jetson = device.read_machine(write_tree(tmp_path, {"etc/nv_tegra_release": release})).jetson
    assert jetson is not None
    assert (jetson.l4t, jetson.jetpack, jetson.power_mode) == ("41.1.2", None, None)


def test_an_empty_tree_is_an_unknown_machine_and_not_an_error(tmp_path: Path) -> None:
    machine = device.read_machine(tmp_path)
    assert machine.memory is None
    assert machine.jetson is None
    assert machine.cpu.quota is None


def test_this_machine_may_use_at_least_one_core_and_not_more_than_it_has() -> None:
    cpu = device.read_cpu()
    assert 1 <= cpu.usable_cores <= cpu.physical_cores <= cpu.logical_cpus
