"""What a measurement depends on beside the bundle: machine, versions, this source.

What cannot be found is None, never guessed (docs/sources/measuring.md#machine-card).
"""

import os
import platform
import subprocess
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tinyllava_edge.benchmarks.verify.versions import package_versions
from tinyllava_edge.device import ask_nvidia_smi, read_machine
from tinyllava_edge.machine_files import first_match, read_file, read_meminfo, read_text

from .power import power_card
from .state import read_clocks, read_temperatures

# Variables that decide how many threads work, how they wait, and which device they see.
_VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_PROC_BIND", "MKL_NUM_THREADS"),
    *("OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "MALLOC_ARENA_MAX"),
)
_GPU_FIELDS = (
    *("name", "driver_version", "compute_cap", "memory.total", "pstate", "temperature.gpu"),
    *("clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "ecc.mode.current"),
)


def machine_card(root: Path = Path("/")) -> dict[str, Any]:
    """Everything about this machine that a reader of the numbers must know.

    Args:
        root: where `proc` and `sys` are; tests have their own.
    """
    return {
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **asdict(read_machine(root)),
        "distribution": first_match(r'(?m)^PRETTY_NAME="?(.*?)"?$', read_file(root / "etc/os-release")),
        "virtualization": _output("systemd-detect-virt", codes=(0, 1)),
        "cpu_settings": _cpu_settings(root),
        "memory_settings": _memory_settings(root),
        "gpu_settings": _gpu_settings(),
        "power": power_card(root),
        "clocks": read_clocks(root),
        "temperatures_c": read_temperatures(root),
        "variables": {name: os.environ.get(name) for name in _VARIABLES},
        "versions": package_versions(),
        "source": source_state(),
    }


def source_state() -> dict[str, Any] | None:
    """Commit of the source tree that this code runs from, and whether it was changed; None outside one."""
    folder = Path(__file__).resolve().parent
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changed is None else bool(changed)}


def _cpu_settings(root: Path) -> dict[str, Any]:
    """What decides how fast the cores run; names of files below sys/devices/system/cpu."""
    cpu = "sys/devices/system/cpu"
    no_turbo, boost = (
        read_text(root / f"{cpu}/intel_pstate/no_turbo"),
        read_text(root / f"{cpu}/cpufreq/boost"),
    )
    return {
        "microcode": first_match(r"(?m)^microcode\s*:\s*(\S+)", read_file(root / "proc/cpuinfo")),
        "frequency_governor": read_text(root / f"{cpu}/cpu0/cpufreq/scaling_governor"),
        "frequency_driver": read_text(root / f"{cpu}/cpu0/cpufreq/scaling_driver"),
        "min_khz": read_text(root / f"{cpu}/cpu0/cpufreq/cpuinfo_min_freq"),
        "max_khz": read_text(root / f"{cpu}/cpu0/cpufreq/cpuinfo_max_freq"),
        "turbo": no_turbo == "0" if no_turbo is not None else boost == "1" if boost is not None else None,
        "smt": read_text(root / f"{cpu}/smt/active"),
        "numa_nodes": read_text(root / "sys/devices/system/node/online"),
    }


def _memory_settings(root: Path) -> dict[str, Any]:
    return {
        "swap_bytes": read_meminfo(root, "SwapTotal"),
        "transparent_hugepage": first_match(
            r"(?m)\[(\w+)\]", read_file(root / "sys/kernel/mm/transparent_hugepage/enabled")
        ),
    }


def _gpu_settings() -> list[dict[str, str]] | None:
    """What nvidia-smi says of each GPU, or None where there is none."""
    said = ask_nvidia_smi(f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader").strip()
    rows = [[value.strip() for value in line.split(",")] for line in said.splitlines()]
    return [dict(zip(_GPU_FIELDS, row, strict=False)) for row in rows] or None


def _output(*command: str, codes: tuple[int, ...] = (0,)) -> str | None:
    """What a program prints, or None where it is missing or ends with another code."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode in codes else None
