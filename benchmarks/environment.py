"""What a measurement depends on beside the bundle: machine, its load, versions. spec section B4.

What cannot be found is None, never guessed.
"""

import os
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tinyllava_edge.device import read_machine

PACKAGES = (
    *("tinyllava-edge", "numpy", "pillow", "tokenizers", "onnxruntime", "llama-cpp-python"),
    *("torch", "transformers", "onnx", "gguf"),
)
# Variables that decide how many threads work, and how they wait.
_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS")


def package_versions() -> dict[str, str | None]:
    """Version of each package that a result depends on; None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def machine_card() -> dict[str, Any]:
    """Everything about this machine that a reader of the numbers must know."""
    return {
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **asdict(read_machine()),
        "frequency_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "variables": {name: os.environ.get(name) for name in _VARIABLES},
        "versions": package_versions(),
    }


def load_marks() -> dict[str, Any]:
    """How busy the machine is now: taken before and after a measurement."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"load_average_1_min": load, "steal_jiffies": _steal_jiffies()}


def _steal_jiffies() -> int | None:
    """Time that a hypervisor gave to others, since boot, in hundredths of a second."""
    fields = (_read("/proc/stat") or "").split("\n")[0].split()
    return int(fields[8]) if len(fields) > 8 else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
