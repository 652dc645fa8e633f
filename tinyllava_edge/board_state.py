"""What a board's speed and figures depend on beside its parts: swap, clocks, power rails, tools, containers.

Files of the kernel: docs/sources/tensorrt.md#clocks-and-rails.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.machine_files import HERE, field_of, read_file, read_number, shown

# A device of the kernel's frequency control that is a Jetson's GPU.
_GPU_CLOCKS = ("*.gpu", "*.ga10b", "*.gv11b", "gpu-gpc-0")


@dataclass(frozen=True, kw_only=True)
class Clock:
    """A clock in Hz: now, the most that the power mode allows, and whether it is held there."""

    now_hz: int
    most_hz: int
    held: bool


@dataclass(frozen=True, kw_only=True)
class BoardState:
    """How a machine is set.

    Attributes:
        swap_bytes: of all swap, compressed memory included; None where the kernel does not say.
        gpu_clock: of an integrated GPU, or None where it cannot be read.
        cpu_clock: of the fastest processor, likewise.
        rails: names of the power rails that can be read.
        tegrastats: where NVIDIA's tool is, or None.
        container: whether this is a container.
        wsl: whether Windows passes a GPU to this Linux (WSL2).
    """

    swap_bytes: int | None
    gpu_clock: Clock | None
    cpu_clock: Clock | None
    rails: tuple[str, ...]
    tegrastats: str | None
    container: bool
    wsl: bool

    @property
    def clocks_held(self) -> bool | None:
        """Whether jetson_clocks is on, as far as the clocks that can be read tell."""
        clocks = [clock for clock in (self.gpu_clock, self.cpu_clock) if clock]
        return all(clock.held for clock in clocks) if clocks else None


def read_board_state(root: Path = HERE) -> BoardState:
    """Read how this machine, or the one that a tree shows, is set."""
    swap = field_of(read_file(root / "proc/meminfo"), "SwapTotal").split()
    devices = root / "sys/class/devfreq"
    policies = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    return BoardState(
        swap_bytes=int(swap[0]) << 10 if swap else None,
        gpu_clock=_read_clock(path for name in _GPU_CLOCKS for path in devices.glob(name)),
        cpu_clock=_read_clock(policies, prefix="scaling_", unit=1000),
        rails=_readable_rails(root),
        tegrastats=_find_tegrastats(root),
        container=any((root / name).exists() for name in (".dockerenv", "run/.containerenv")),
        wsl=(root / "dev/dxg").exists(),
    )


def _read_clock(folders: Iterable[Path], prefix: str = "", unit: int = 1) -> Clock | None:
    """The fastest of some clocks; it is held where its least frequency is its most."""
    found = []
    for folder in folders:
        now, least, most = (read_number(folder / f"{prefix}{name}_freq") for name in ("cur", "min", "max"))
        if now is not None and most is not None:
            found.append(Clock(now_hz=now * unit, most_hz=most * unit, held=least == most))
    return max(found, key=lambda clock: clock.most_hz, default=None)


def _readable_rails(root: Path) -> tuple[str, ...]:
    """Rails of INA sensors whose voltage and current this user may read; NC is not connected."""
    names = []
    for label in sorted(root.glob("sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*/in*_label")):
        number = label.name.removeprefix("in").removesuffix("_label")
        name = read_file(label).strip()
        inputs = [label.with_name(f"{kind}{number}_input") for kind in ("in", "curr")]
        if name and name != "NC" and all(os.access(path, os.R_OK) for path in inputs):
            names.append(name)
    return tuple(names)


def _find_tegrastats(root: Path) -> str | None:
    if root == HERE:
        return shutil.which("tegrastats")
    path = root / "usr/bin/tegrastats"
    return shown(root, path) if path.is_file() else None
