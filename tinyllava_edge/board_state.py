"""What a board's speed and figures depend on beside its parts: swap, clocks, power rails, tools, containers.

Files of the kernel: docs/sources/tensorrt.md#clocks-and-rails.
"""

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.machine_files import HERE, read_meminfo, read_number, read_text, shown

# A Jetson GPU's frequency control (docs/sources/measuring.md#tegrastats); `nvd` is not what computes.
_GPU = re.compile(r"gpu|ga10b|gv11b")


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
    rails = power_rails(root).items()
    policies = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    return BoardState(
        swap_bytes=read_meminfo(root, "SwapTotal"),
        gpu_clock=_read_clock(path for path in gpu_clocks(root) if "nvd" not in path.name),
        cpu_clock=_read_clock(policies, prefix="scaling_", unit=1000),
        rails=tuple(name for name, files in rails if all(os.access(path, os.R_OK) for path in files)),
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


def gpu_clocks(root: Path = HERE) -> list[Path]:
    """Folders of the kernel's frequency control that are of a Jetson's GPU."""
    return [path for path in sorted((root / "sys/class/devfreq").glob("*")) if _GPU.search(path.name)]


def power_rails(root: Path = HERE) -> dict[str, tuple[Path, ...]]:
    """Files with mV and mA of each channel of an INA3221 that has a name and is connected."""
    sensors = sorted((root / "sys/class/hwmon").glob("hwmon*"))
    chips = [chip for chip in sensors if (read_text(chip / "name") or "").startswith("ina3221")]
    places = [(chip, number) for chip in chips for number in (1, 2, 3)]  # further ones are shunt voltages
    named = {read_text(chip / f"in{number}_label"): (chip, number) for chip, number in places}
    return {
        name: tuple(chip / f"{kind}{number}_input" for kind in ("in", "curr"))
        for name, (chip, number) in named.items()
        if name and name != "NC"
    }


def _find_tegrastats(root: Path) -> str | None:
    if root == HERE:
        return shutil.which("tegrastats")
    path = root / "usr/bin/tegrastats"
    return shown(root, path) if path.is_file() else None
