"""Which Jetson board this is, and its JetPack: docs/sources/tensorrt.md#jetson-files."""

import re
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.machine_files import HERE, first_match, read_file, read_meminfo

# L4T release -> JetPack, and the TensorRT of its apt packages, None where no source says it.
# Source: docs/sources/tensorrt.md#jetpack-releases.
JETPACKS = {
    "35.3.1": ("5.1.1", None),
    "35.4.1": ("5.1.2", "8.5.2.2"),
    "35.5.0": ("5.1.3", "8.5.2.2"),
    "35.6.0": ("5.1.4", "8.5.2.2"),
    "36.3.0": ("6.0", "8.6.2"),
    "36.4.0": ("6.1", "10.3.0"),
    "36.4.2": ("6.1 rev 1", "10.3.0"),
    "36.4.3": ("6.2", "10.3.0.30"),
    "36.4.4": ("6.2.1", "10.3.0.30"),
    "36.4.7": ("6.2.1", "10.3.0.30"),
    "36.5.0": ("6.2.2", "10.3.0.30"),
    "36.5.2": ("6.2.3", None),
    "38.2.0": ("7.0", "10.13.3.9"),
    "38.2.1": ("7.0", "10.13.3.9"),
    "38.2.2": ("7.0", "10.13.3.9"),
    "38.4.0": ("7.1", "10.13.3.9"),
    "39.2.0": ("7.2", "10.16.2.10"),
    "39.2.1": ("7.2.1", None),
}
# Chip -> compute capability as CMake has it: docs/sources/tensorrt.md#llamacpp-on-a-jetson.
TEGRAS = {"tegra194": "72", "tegra234": "87", "tegra264": "110"}
JETPACK_CUDA = {"36.3": "12-2", "36": "12-6", "38": "13-0", "39": "13-2"}  # by L4T release


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
    chip: str | None = None  # "tegra234"

    @property
    def cuda(self) -> str | None:
        """CUDA of this JetPack as NVIDIA's package names have it ("12-6"), None where it is not known."""
        major, _, minor = (self.l4t or "").partition(".")
        return JETPACK_CUDA.get(f"{major}.{minor.partition('.')[0]}") or JETPACK_CUDA.get(major)


def read_jetson(root: Path = HERE) -> Jetson | None:
    """A Jetson's board, or None; a container may hide all of its files but the kernel's name."""
    compatible = read_file(root / "proc/device-tree/compatible")
    release = read_file(root / "etc/nv_tegra_release")
    kernel = read_file(root / "proc/sys/kernel/osrelease")  # what a container cannot hide
    if "nvidia,tegra" not in compatible and not release and "-tegra" not in kernel:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    l4t = f"{found[1]}.{found[2]}" if found else None
    jetpack, tensorrt = JETPACKS.get(l4t or "", (None, None))
    # The entry of the module alone, behind the one that names the carrier too.
    module = first_match(r"(?:^|\0)nvidia,(p\d{4}-\d{4})(?=[^+\0]*(?:\0|$))", compatible)
    return Jetson(
        model=read_file(root / "proc/device-tree/model").rstrip("\0\n") or "unknown",
        l4t=l4t,
        jetpack=jetpack,
        power_mode=_power_mode(root),
        module=module,
        tensorrt=tensorrt,
        cma_bytes=read_meminfo(root, "CmaTotal"),
        chip=first_match(r"nvidia,(tegra\w+)", compatible),
    )


def _power_mode(root: Path) -> str | None:
    """Name of the power mode; ids differ by board and release, so the name is looked up."""
    current = first_match(r"pmode:0*(\d+)", read_file(root / "var/lib/nvpmodel/status"))
    if current is None:
        return None
    return read_power_modes(root).get(current, f"id {current}")


def read_power_modes(root: Path = HERE) -> dict[str, str]:
    """Names of this board's power modes by their ids; none where it has no table of them."""
    table = read_file(root / "etc/nvpmodel.conf")
    return dict(re.findall(r"< *POWER_MODEL +ID=(\d+) +NAME=(\S+) *>", table))
