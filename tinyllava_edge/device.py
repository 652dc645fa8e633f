"""What machine is this: processor, memory, GPU, Jetson board.

Everything is read from files of the kernel and of NVIDIA's board support, below a root: this machine's, or
that of a tree that shows another one. What cannot be found is None, never guessed.
"""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.jetson import Jetson, read_jetson
from tinyllava_edge.machine_files import HERE, field_of, first_match, read_file, read_meminfo, read_number

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
class Machine:
    """Everything that decides how fast a bundle runs here."""

    system: str
    cpu: Cpu
    memory: Memory | None
    gpus: tuple[str, ...]
    jetson: Jetson | None


def read_machine(root: Path = HERE) -> Machine:
    """Read what this machine is."""
    return Machine(
        system=_system(root),
        cpu=read_cpu(root),
        memory=read_memory(root),
        gpus=_nvidia_gpus() if root == HERE else (),
        jetson=read_jetson(root),
    )


def _system(root: Path) -> str:
    if root == HERE:
        return f"{platform.system()} {platform.release()}"
    return f"Linux {read_file(root / 'proc/sys/kernel/osrelease').strip() or 'of unknown release'}"


def has_nvidia_gpu(root: Path = HERE) -> bool:
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


def read_driver(root: Path = HERE) -> str | None:
    """Version of NVIDIA's kernel driver, or None where it does not say."""
    said = read_file(root / "proc/driver/nvidia/version")
    return first_match(r"Kernel Module\s.*?(\d+\.\d+(?:\.\d+)?)", said)


def read_cpu(root: Path = HERE) -> Cpu:
    """Read what the processor is, and how many of its cores this process may use."""
    text = read_file(root / "proc/cpuinfo")
    allowed = _allowed_cpus(root, text)
    logical = len(allowed) or os.cpu_count() or 1
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"  # the CPUs that share its core
    physical = len({read_file(root / siblings.format(cpu)).strip() or cpu for cpu in allowed}) or logical
    quota = _cpu_quota(root)
    usable = physical if quota is None else min(physical, max(1, int(quota)))
    found = set(field_of(text, "flags").split()) | set(field_of(text, "Features").split())
    core = ARM_CORES.get((field_of(text, "CPU implementer"), field_of(text, "CPU part")), "")
    return Cpu(
        model=field_of(text, "model name") or core or platform.processor() or "unknown",
        architecture=_architecture(root, text),
        logical_cpus=logical,
        physical_cores=physical,
        quota=quota,
        usable_cores=usable,
        features=tuple(name for name in (*X86_FEATURES, *ARM_FEATURES) if name in found),
    )


def _allowed_cpus(root: Path, cpuinfo: str) -> list[int]:
    """Numbers of the CPUs that this process may run on; of all in a tree that lists them."""
    listed = [int(number) for number in re.findall(r"(?m)^processor\s*:\s*(\d+)", cpuinfo)]
    if root != HERE and listed:
        return listed
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _architecture(root: Path, cpuinfo: str) -> str:
    if root == HERE or not cpuinfo:
        return platform.machine()
    return "aarch64" if "CPU implementer" in cpuinfo else "x86_64"


def _cpu_quota(root: Path) -> float | None:
    """CPUs that the control groups of this process allow: the tightest limit on the way to the root."""
    limits = []
    for folder in _control_groups(root, "cpu"):
        quota, _, period = read_file(folder / "cpu.max").strip().partition(" ")  # version 2: "200000 100000"
        if not quota:
            quota = read_file(folder / "cpu.cfs_quota_us").strip()
            period = read_file(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # not "max" nor "-1"
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _control_groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's control group and all above it, for version 2 and version 1."""
    folders = []
    for line in read_file(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        path = top / name.strip().lstrip("/")
        folders += [path, *(parent for parent in path.parents if parent.is_relative_to(top))]
    return folders


def read_memory(root: Path = HERE) -> Memory | None:
    """Read how much main memory there is, or None where the system does not say."""
    total_bytes, available_bytes = (read_meminfo(root, name) for name in ("MemTotal", "MemAvailable"))
    if total_bytes is None or available_bytes is None:
        return None
    for folder in _control_groups(root, "memory"):
        limit = _first_number(folder, "memory.max", "memory.limit_in_bytes")
        used = _first_number(folder, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None:
            total_bytes = min(total_bytes, limit)
            available_bytes = min(available_bytes, max(0, limit - used))
    return Memory(total_bytes=total_bytes, available_bytes=available_bytes)


def _first_number(folder: Path, *names: str) -> int | None:
    """The number of the first file that has one: version 2 of control groups, then version 1."""
    numbers = (read_number(folder / name) for name in names)
    return next((number for number in numbers if number is not None), None)


def _nvidia_gpus() -> tuple[str, ...]:
    """Names and drivers of NVIDIA GPUs, from nvidia-smi where there is one."""
    said = ask_nvidia_smi("--query-gpu=name,driver_version", "--format=csv,noheader")
    return tuple(line.strip() for line in said.splitlines() if line.strip())


def ask_nvidia_smi(*options: str) -> str:
    """What the driver's tool prints; nothing where it is not installed, fails, or is without a driver."""
    command = ["nvidia-smi", *options]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
