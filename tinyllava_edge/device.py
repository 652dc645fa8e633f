"""What machine is this: processor, memory, GPU, Jetson board.

Everything is read from files of the kernel and of NVIDIA's board support, below a root that tests replace.
What cannot be found is None, never guessed. Jetson files: docs/sources/tensorrt.md#jetson-files.
"""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Instructions that the kernels of ONNX Runtime and llama.cpp choose between, as /proc/cpuinfo spells them.
X86_FEATURES = (
    "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vbmi",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
)  # fmt: skip
ARM_FEATURES = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")
# (CPU implementer, CPU part) of boards whose /proc/cpuinfo has no model name.
ARM_CORES = {
    ("0x41", "0xd03"): "Arm Cortex-A53",
    ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0x41", "0xd0b"): "Arm Cortex-A76",
    ("0x41", "0xd42"): "Arm Cortex-A78AE",  # Jetson Orin
    ("0x41", "0xd83"): "Arm Neoverse-V3AE",  # Jetson Thor
    ("0x4e", "0x004"): "NVIDIA Carmel",  # Jetson Xavier
}
# L4T release -> JetPack, and the TensorRT of its apt packages; that of 6.0 is too old for our engines.
# Source: docs/sources/tensorrt.md#jetpack-releases.
JETPACKS = {
    "36.3.0": ("6.0", "8.6.2"),
    "36.4.0": ("6.1", "10.3.0"),
    "36.4.3": ("6.2", "10.3.0.30"),
    "36.4.4": ("6.2.1", "10.3.0.30"),
    "36.4.7": ("6.2.1", "10.3.0.30"),
    "36.5.0": ("6.2.2", "10.3.0.30"),
    "38.2.0": ("7.0", "10.13.3.9"),
    "38.2.1": ("7.0", "10.13.3.9"),
    "38.2.2": ("7.0", "10.13.3.9"),
    "38.4.0": ("7.1", "10.13.3.9"),
    "39.2.0": ("7.2", "10.16.2.10"),
}


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor, and how much of it this process may use."""

    model: str
    architecture: str
    logical_cpus: int
    physical_cores: int  # among the CPUs this process may run on
    quota: float | None  # CPUs the control group allows, None where it sets no limit
    usable_cores: int
    features: tuple[str, ...]

    @property
    def saturates_int8(self) -> bool:
        """Whether sums of uint8 x int8 products are cut off at 16 bits: x86 without VNNI (vpmaddubsw)."""
        is_x86 = self.architecture.lower() in ("x86_64", "amd64")
        return is_x86 and not {"avx_vnni", "avx512_vnni"} & set(self.features)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Main memory in bytes; a control group's limit counts where it is lower."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, kw_only=True)
class Jetson:
    """An NVIDIA Jetson board."""

    model: str
    l4t: str | None
    jetpack: str | None  # None: a release that is not in the table
    power_mode: str | None
    module: str | None = None  # "p3767-0005": which of the modules that share a model's name
    tensorrt: str | None = None  # what this JetPack brings
    cma_bytes: int | None = None  # contiguous memory, which JetPack 6 takes GPU allocations from


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything that decides how fast a bundle runs here."""

    system: str
    cpu: Cpu
    memory: Memory | None
    gpus: tuple[str, ...]
    jetson: Jetson | None


def read_machine(root: Path = Path("/")) -> Machine:
    """Read what this machine is."""
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        cpu=read_cpu(root),
        memory=_read_memory(root),
        gpus=_nvidia_gpus(),
        jetson=read_jetson(root),
    )


def has_nvidia_gpu(root: Path = Path("/")) -> bool:
    """Whether the kernel shows an NVIDIA GPU; says nothing of the libraries that are needed to use it."""
    places = (
        "dev/nvidiactl",
        "dev/nvhost-gpu",
        "dev/nvgpu/igpu0",
        "usr/lib/wsl/lib/libcuda.so.1",  # WSL2; in its containers only Windows' driver folder is there
    )
    if os.name == "nt":
        return shutil.which("nvidia-smi") is not None
    in_wsl = (root / "dev/dxg").exists() and any(root.glob("usr/lib/wsl/drivers/nv*"))  # dxg: any maker's
    return in_wsl or any((root / place).exists() for place in places)


def read_driver(root: Path = Path("/")) -> str | None:
    """Version of NVIDIA's kernel driver, or None where it does not say."""
    return _found(r"Kernel Module\s.*?(\d+\.\d+(?:\.\d+)?)", _read(root / "proc/driver/nvidia/version"))


def read_cpu(root: Path = Path("/")) -> Cpu:
    """Read what the processor is, and how many of its cores this process may use."""
    text = _read(root / "proc/cpuinfo")
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    logical = len(allowed) or os.cpu_count() or 1
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"  # the CPUs that share its core
    physical = len({_read(root / siblings.format(cpu)).strip() or cpu for cpu in allowed}) or logical
    quota = _cpu_quota(root)
    usable = physical if quota is None else min(physical, max(1, int(quota)))
    found = set(_field(text, "flags").split()) | set(_field(text, "Features").split())
    core = ARM_CORES.get((_field(text, "CPU implementer"), _field(text, "CPU part")), "")
    return Cpu(
        model=_field(text, "model name") or core or platform.processor() or "unknown",
        architecture=platform.machine(),
        logical_cpus=logical,
        physical_cores=physical,
        quota=quota,
        usable_cores=usable,
        features=tuple(name for name in (*X86_FEATURES, *ARM_FEATURES) if name in found),
    )


def _cpu_quota(root: Path) -> float | None:
    """CPUs that the control groups of this process allow: the tightest limit on the way to the root."""
    limits = []
    for folder in _control_groups(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")  # version 2: "200000 100000"
        if not quota:
            quota = _read(folder / "cpu.cfs_quota_us").strip()
            period = _read(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # not "max" nor "-1"
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _control_groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's control group and all above it, for version 2 and version 1."""
    folders = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        path = top / name.strip().lstrip("/")
        folders += [path, *(parent for parent in path.parents if parent.is_relative_to(top))]
    return folders


def _read_memory(root: Path) -> Memory | None:
    text = _read(root / "proc/meminfo")
    total, available = (_field(text, name).split() for name in ("MemTotal", "MemAvailable"))
    if not total or not available:
        return None
    total_bytes, available_bytes = int(total[0]) << 10, int(available[0]) << 10
    for folder in _control_groups(root, "memory"):
        limit = _read(folder / "memory.max").strip() or _read(folder / "memory.limit_in_bytes").strip()
        used = _read(folder / "memory.current").strip() or _read(folder / "memory.usage_in_bytes").strip()
        if limit.isdigit() and used.isdigit():
            total_bytes = min(total_bytes, int(limit))
            available_bytes = min(available_bytes, max(0, int(limit) - int(used)))
    return Memory(total_bytes=total_bytes, available_bytes=available_bytes)


def read_jetson(root: Path = Path("/")) -> Jetson | None:
    """A Jetson's board, or None; a container may hide all of these files."""
    compatible = _read(root / "proc/device-tree/compatible")
    release = _read(root / "etc/nv_tegra_release")
    if "nvidia,tegra" not in compatible and not release:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    l4t = f"{found[1]}.{found[2]}" if found else None
    jetpack, tensorrt = JETPACKS.get(l4t or "", (None, None))
    cma = _field(_read(root / "proc/meminfo"), "CmaTotal").split()
    # The entry of the module alone, behind the one that names the carrier too.
    module = _found(r"(?:^|\0)nvidia,(p\d{4}-\d{4})(?=[^+\0]*(?:\0|$))", compatible)
    return Jetson(
        model=_read(root / "proc/device-tree/model").rstrip("\0\n") or "unknown",
        l4t=l4t,
        jetpack=jetpack,
        power_mode=_power_mode(root),
        module=module,
        tensorrt=tensorrt,
        cma_bytes=int(cma[0]) << 10 if cma else None,
    )


def _power_mode(root: Path) -> str | None:
    """Name of the power mode; ids differ by board and release, so the name is looked up."""
    current = _found(r"pmode:0*(\d+)", _read(root / "var/lib/nvpmodel/status"))
    if current is None:
        return None
    pattern = rf"< *POWER_MODEL +ID={current} +NAME=(\S+) *>"
    return _found(pattern, _read(root / "etc/nvpmodel.conf")) or f"id {current}"


def _nvidia_gpus() -> tuple[str, ...]:
    """Names and drivers of NVIDIA GPUs, from nvidia-smi where there is one."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # not installed, or without a driver
        return ()
    return tuple(line.strip() for line in result.stdout.splitlines() if line.strip())


def _field(text: str, name: str) -> str:
    """First value of `name : value` in a file of /proc."""
    return (_found(rf"(?m)^{re.escape(name)}\s*:\s*(.*)$", text) or "").strip()


def _found(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def _read(path: Path) -> str:
    """A small file's text; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
