"""Which CUDA is installed, by its files: compiler, runtime libraries, cuDNN, and the driver's library.

Nothing is loaded: a tree may be another machine's. Versions: docs/sources/tensorrt.md#cuda-files.
"""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.install import find_nvcc
from tinyllava_edge.installed import find_in_packages
from tinyllava_edge.machine_files import HERE, read_file, shown

# Oldest Linux driver of each CUDA's major version, on cards.
OLDEST_DRIVERS = {12: "525.60.13", 13: "580.65.06"}
_SYSTEM = ("usr/lib/*-linux-gnu", "usr/lib/*-linux-gnu/*", "usr/lib64")
_WSL = ("usr/lib/wsl/lib", "usr/lib/wsl/drivers/nv*")  # of the driver, from Windows
_TOOLKITS = ("usr/local/cuda*/targets/*/lib", "usr/local/cuda*/lib64")


@dataclass(frozen=True, kw_only=True)
class Library:
    """A shared library: where it is, and its version as far as files tell ("12.6.68", "13")."""

    path: str
    version: str

    @property
    def major(self) -> int:
        """The version's first number."""
        return int(self.version.split(".")[0])


@dataclass(frozen=True, kw_only=True)
class CudaFiles:
    """What of CUDA is installed.

    Attributes:
        nvcc: where the compiler is, or None.
        nvcc_version: "12.6.68", or None where no file says it.
        runtimes: every libcudart, each once.
        cudnn: the newest cuDNN, or None.
        driver: the driver's library, libcuda.so.1, or None.
    """

    nvcc: str | None
    nvcc_version: str | None
    runtimes: tuple[Library, ...]
    cudnn: Library | None
    driver: str | None


def read_cuda_files(root: Path = HERE) -> CudaFiles:
    """Look for CUDA on this machine, or in a tree."""
    nvcc = find_nvcc(root)
    cudnn = _libraries(root, "libcudnn.so.*", "nvidia/cudnn/lib")
    driver = sorted(path for place in (*_SYSTEM, *_WSL) for path in root.glob(f"{place}/libcuda.so.1*"))
    return CudaFiles(
        nvcc=nvcc,
        nvcc_version=_nvcc_version(root, nvcc) if nvcc else None,
        runtimes=_libraries(root, "libcudart.so.*", "nvidia/*/lib"),
        cudnn=max(cudnn, key=lambda one: _numbers(one.version), default=None),
        driver=shown(root, driver[0]) if driver else None,
    )


def driver_runs(driver: str | None, major: int) -> bool:
    """Whether a card's driver is new enough for a CUDA; unknown ones count as new enough."""
    oldest = OLDEST_DRIVERS.get(major)
    return driver is None or oldest is None or _numbers(driver) >= _numbers(oldest)


def _libraries(root: Path, name: str, in_packages: str) -> tuple[Library, ...]:
    """Each library once, though links lead to it; the longest name has most of its version."""
    found: dict[Path, Library] = {}
    paths = [path for place in (*_TOOLKITS, *_SYSTEM) for path in root.glob(f"{place}/{name}")]
    for path in (*paths, *find_in_packages(f"{in_packages}/{name}", root)):
        version = path.name.partition(".so.")[2]
        real = path.resolve()
        if not re.fullmatch(r"[\d.]+", version) or not real.is_file():
            continue
        known = found.get(real)
        if known is None or len(known.version) < len(version):
            found[real] = Library(path=shown(root, path), version=version)
    return _once(found.values())


def _once(libraries: Iterable[Library]) -> tuple[Library, ...]:
    """Without those that lie twice in one folder, as copies instead of links."""
    longest: dict[tuple[str, int], Library] = {}
    for one in sorted(libraries, key=lambda one: len(one.version)):
        longest[one.path.rpartition("/")[0], one.major] = one
    return tuple(sorted(longest.values(), key=lambda one: one.path))


def _nvcc_version(root: Path, nvcc: str) -> str | None:
    """What the toolkit's version.json says, else its folder's name."""
    folder = (root / nvcc.lstrip("/")).resolve().parents[1]
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(read_file(folder / "version.json"))["cuda"]["version"])
    found = re.search(r"cuda-(\d+\.\d+)", folder.name)
    return found[1] if found else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
