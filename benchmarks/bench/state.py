"""Clocks and temperatures of this machine, from files of the kernel; what they do not tell is None."""

from pathlib import Path
from typing import Any

from tinyllava_edge.board_state import gpu_clocks
from tinyllava_edge.machine_files import read_number, read_text


def read_temperatures(root: Path = Path("/")) -> dict[str, float | None]:
    """Degrees of each thermal zone by its type; None for one that is powered off."""
    found: dict[str, float | None] = {}
    for zone in sorted(
        (root / "sys/class/thermal").glob("thermal_zone*"), key=lambda path: (len(path.name), path)
    ):
        if (name := read_text(zone / "type")) is None:
            continue
        millidegrees = read_number(zone / "temp")
        off = millidegrees is None or millidegrees <= -256_000
        found[name.removesuffix("-thermal")] = None if millidegrees is None or off else millidegrees / 1000
    return found


def read_clocks(root: Path = Path("/")) -> dict[str, Any]:
    """Of each group of cores and of the GPU: now, between which bounds, and who decides.

    Equal bounds are clocks that were locked, as `jetson_clocks` does.
    """
    policies = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    return {
        "cores": [
            {
                "cpus": read_text(policy / "related_cpus"),
                "mhz": _mhz(policy, "scaling_cur_freq", 1e3),
                "min_mhz": _mhz(policy, "scaling_min_freq", 1e3),
                "max_mhz": _mhz(policy, "scaling_max_freq", 1e3),
                "governor": read_text(policy / "scaling_governor"),
            }
            for policy in policies
        ],
        "gpu": [
            {
                "name": device.name,
                "mhz": _mhz(device, "cur_freq", 1e6),
                "min_mhz": _mhz(device, "min_freq", 1e6),
                "max_mhz": _mhz(device, "max_freq", 1e6),
                "governor": read_text(device / "governor"),
            }
            for device in gpu_clocks(root)
        ],
    }


def _mhz(folder: Path, name: str, per_mhz: float) -> float | None:
    value = read_number(folder / name)
    return None if value is None else value / per_mhz
