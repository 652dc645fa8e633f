"""What disturbs a measurement: others on the processor, and files that are in memory already.

Source of the rule: docs/sources/measuring.md#disturbed-blocks. Nothing is left out for it: a disturbed
block is counted, and said beside the figures.
"""

import ctypes
import mmap
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.machine_files import first_match, read_file, read_text

from .state import read_temperatures

MOST_STOLEN = 0.05  # of the processors' time, given to others by the hypervisor
MOST_OTHERS = 0.10  # of the processors' time, used by other processes
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq and softirq in the first line of /proc/stat
_STOLEN = 7
_LEFT_OVER = 0.02  # share of the pages that may stay, for a load to be called cold
Shares = dict[str, Any]  # others, stolen: of the time of all processors; waiting: of time; disturbed


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """Processor time in seconds, all processors together, since some time in the past."""

    at_s: float
    busy_s: float
    stolen_s: float
    own_s: float  # of this process and those it was told of
    waiting_s: float | None  # time in which a process that could run had to wait (PSI "some")


def read_cpu_times(processes: Iterable[int] = (), root: Path = Path("/")) -> CpuTimes | None:
    """Read the kernel's counters, or None where it has none.

    Args:
        processes: ids of those whose time is not others'; this process is always one of them.
        root: where `proc` is; tests have their own.
    """
    fields = (read_text(root / "proc/stat") or "").split("\n")[0].split()[1:]
    if len(fields) <= _STOLEN:
        return None
    tick = 1 / os.sysconf("SC_CLK_TCK")
    waiting_us = first_match(r"(?m)^some .*total=(\d+)", read_file(root / "proc/pressure/cpu"))
    return CpuTimes(
        at_s=time.monotonic(),
        busy_s=sum(int(fields[index]) for index in _BUSY) * tick,
        stolen_s=int(fields[_STOLEN]) * tick,
        own_s=sum(_process_ticks(root, name) for name in ("self", *map(str, processes))) * tick,
        waiting_s=int(waiting_us) / 1e6 if waiting_us else None,
    )


def shares_between(before: CpuTimes | None, after: CpuTimes | None) -> Shares | None:
    """What happened between two readings, or None where there is no reading.

    It is disturbed where so much went to others that a time measured meanwhile tells of them too.
    """
    if before is None or after is None:
        return None
    elapsed = max(after.at_s - before.at_s, 1e-3)
    available = elapsed * (os.cpu_count() or 1)
    others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    shares: Shares = {
        "others": round(max(0.0, others / available), 3),
        "stolen": round((after.stolen_s - before.stolen_s) / available, 3),
        "waiting": None,
    }
    if before.waiting_s is not None and after.waiting_s is not None:
        shares["waiting"] = round((after.waiting_s - before.waiting_s) / elapsed, 3)
    return {**shares, "disturbed": shares["stolen"] > MOST_STOLEN or shares["others"] > MOST_OTHERS}


def watch(seconds: float = 1.0) -> dict[str, Any]:
    """How busy the machine is while this process waits: taken before and after a measurement."""
    before = read_cpu_times()
    time.sleep(seconds)
    return {
        "load_average_1_min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "mhz": core_mhz(),
        "temperatures_c": read_temperatures(),
        **(shares_between(before, read_cpu_times()) or {"disturbed": None}),
    }


def core_mhz(root: Path = Path("/")) -> list[float] | None:
    """What each core runs at now, or None where the kernel does not say."""
    found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", read_text(root / "proc/cpuinfo") or "", flags=re.MULTILINE)
    if found:
        return [float(value) for value in found]
    folder = root / "sys/devices/system/cpu"
    texts = [read_text(path / "cpufreq/scaling_cur_freq") for path in sorted(folder.glob("cpu[0-9]*"))]
    return [int(text) / 1000 for text in texts if text] or None


def busy_line(marks: dict[str, Any]) -> str | None:
    """One line that says what keeps the machine busy, or None where it is calm or cannot tell."""
    if not marks["disturbed"]:
        return None
    load = marks["load_average_1_min"]
    return (
        f"other processes use {marks['others']:.0%} of the processors, the hypervisor took "
        f"{marks['stolen']:.0%}" + ("" if load is None else f", load average {load:.1f}")
    )


def _process_ticks(root: Path, process: str) -> int:
    """User and system time of a process; 0 where it has ended."""
    text = read_text(root / f"proc/{process}/stat")
    fields = (text or "").rpartition(")")[2].split()  # behind the name, which may have spaces
    return int(fields[11]) + int(fields[12]) if len(fields) > 12 else 0


def evict(paths: Iterable[Path]) -> bool:
    """Ask the kernel to forget the pages of files; needs no privilege.

    Returns:
        Whether they have left: not where a process has them mapped, the files are on a RAM disk, or the
        system cannot tell.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    left = [_evict_one(path) for path in paths]
    return all(left)


def _evict_one(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)  # only what is on the disk is forgotten
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        return resident_share(handle) <= _LEFT_OVER
    except OSError:
        return False
    finally:
        os.close(handle)


def resident_share(handle: int) -> float:
    """Share of an open file's pages that are in memory, by mincore(2).

    Raises:
        OSError: the system does not say.
    """
    size = os.fstat(handle).st_size
    if size == 0:
        return 0.0
    library = ctypes.CDLL(None, use_errno=True)
    pages = -(-size // mmap.PAGESIZE)
    marks = (ctypes.c_ubyte * pages)()
    # ACCESS_COPY: ctypes takes the address of writable memory only; nothing is written.
    with mmap.mmap(handle, size, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        failed = library.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), marks)
        del first  # or the mapping cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return sum(mark & 1 for mark in bytes(marks)) / pages
