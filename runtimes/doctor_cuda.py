"""What of CUDA is missing, too old or there twice, told by files alone: `doctor` says it of any tree."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.board_state import BoardState
from tinyllava_edge.cuda_files import OLDEST_DRIVERS, CudaFiles, Library, driver_runs
from tinyllava_edge.device import Machine, has_nvidia_gpu, read_driver
from tinyllava_edge.install import apt_install, pip
from tinyllava_edge.jetson import Jetson
from tinyllava_edge.machine_files import HERE

from .trt.cudart import LIBRARY_VARIABLE

_NO_GPU_NEEDED = "--runtime onnxruntime+llamacpp needs none"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why something cannot be used, and what mends it."""

    reason: str
    mend: str


def gpu_fault(root: Path, machine: Machine, board: BoardState, cuda: CudaFiles) -> Fault | None:
    """Why no GPU can be computed on, as far as files tell; None where they speak for one, and on Windows."""
    if os.name == "nt" and root == HERE:  # its files are elsewhere
        return None
    if not has_nvidia_gpu(root):
        return _no_device(machine.jetson, board)
    if cuda.driver is None:
        return Fault(reason="the driver's library libcuda.so.1 is not here", mend=_driver_line(root, machine))
    usable = [one for one in cuda.runtimes if one.major in OLDEST_DRIVERS]
    if not usable:
        said = ", ".join(f"{one.path}" for one in cuda.runtimes)
        found = f"; there is {said}, which is too old" if said else ""
        majors = " or ".join(map(str, sorted(OLDEST_DRIVERS)))
        return Fault(
            reason=f"no CUDA runtime (libcudart.so of {majors}) is here{found}",
            mend=_runtime_line(root, machine.jetson),
        )
    if any(_runs(root, machine.jetson, one) for one in usable):
        return None
    return Fault(
        reason=_too_new(root, machine.jetson, usable[0]),
        mend=_runtime_line(root, machine.jetson) if machine.jetson else _driver_line(root, machine),
    )


def cuda_lines(cuda: CudaFiles) -> Iterator[str]:
    """The report for people."""
    version = cuda.nvcc_version or "unknown version"
    yield f"nvcc         {f'{version}, {cuda.nvcc}' if cuda.nvcc else 'none'}"
    runtimes = ", ".join(f"{one.version} ({one.path})" for one in cuda.runtimes)
    yield f"CUDA runtime {runtimes or 'none'}"
    yield f"cuDNN        {f'{cuda.cudnn.version} ({cuda.cudnn.path})' if cuda.cudnn else 'none'}"


def cuda_problems(
    root: Path, machine: Machine, cuda: CudaFiles, packages: dict[str, str | None]
) -> Iterator[str]:
    """What is wrong and can be mended, where there is a GPU."""
    if not has_nvidia_gpu(root):
        return
    majors = {one.major: one for one in cuda.runtimes}
    if len(majors) > 1:
        places = ", ".join(f"{one.version} ({one.path})" for one in cuda.runtimes)
        yield (
            f"{len(majors)} CUDA runtimes: {places}. The first that finds the GPU is taken, the newest "
            f"before the others; {LIBRARY_VARIABLE} names another. Remove those that nothing needs"
        )
        refused = [one for one in majors.values() if not _runs(root, machine.jetson, one)]
        yield from (_too_new(root, machine.jetson, one) for one in refused)
    if packages["onnxruntime-gpu"] and (cuda.cudnn is None or cuda.cudnn.major < 9):
        found = f"only cuDNN {cuda.cudnn.version}" if cuda.cudnn else "no cuDNN"
        yield f"onnxruntime-gpu needs cuDNN 9, and {found} was found: {_cudnn_line(root, machine.jetson)}"


def _no_device(jetson: Jetson | None, board: BoardState) -> Fault:
    if board.wsl:
        return Fault(
            reason="WSL2 passes a GPU (/dev/dxg), but Windows gives no NVIDIA driver for it "
            "(/usr/lib/wsl/lib/libcuda.so.1)",
            mend="install NVIDIA's driver in Windows, never in WSL2, then in Windows: wsl --shutdown",
        )
    if jetson is not None:
        return Fault(
            reason="a Jetson whose GPU is not shown, as in a container that was not given it",
            mend="docker run --runtime nvidia -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro ...",
        )
    mend = f"docker run --gpus all ..., if the machine has one; {_NO_GPU_NEEDED}"
    if not board.container:
        mend = f"{_NO_GPU_NEEDED}; a card that is there wants NVIDIA's driver"
    return Fault(reason="the kernel shows no NVIDIA GPU", mend=mend)


def _runs(root: Path, jetson: Jetson | None, library: Library) -> bool:
    if jetson is None:
        return driver_runs(read_driver(root), library.major)
    return jetson.cuda is None or jetson.cuda.startswith(f"{library.major}-")


def _too_new(root: Path, jetson: Jetson | None, library: Library) -> str:
    if jetson is not None:
        return (
            f"CUDA {library.version} ({library.path}) is not for this JetPack, which has CUDA "
            f"{(jetson.cuda or 'unknown').replace('-', '.')}"
        )
    return (
        f"driver {read_driver(root)} is too old for CUDA {library.version} ({library.path}), which wants "
        f"{OLDEST_DRIVERS[library.major]} or newer"
    )


def _driver_line(root: Path, machine: Machine) -> str:
    if machine.jetson is not None:
        line = apt_install(("nvidia-l4t-cuda",), root)
        return f"{line}; in a container: docker run --runtime nvidia ..."
    return (
        "install a newer driver of NVIDIA (Ubuntu: sudo ubuntu-drivers install); in a container, on its host"
    )


def _runtime_line(root: Path, jetson: Jetson | None) -> str:
    if jetson is None:
        return f"{pip('install', root)} nvidia-cuda-runtime"
    if jetson.cuda is None:
        return "install the package cuda-cudart of this JetPack's CUDA"
    return apt_install((f"cuda-cudart-{jetson.cuda}",), root)


def _cudnn_line(root: Path, jetson: Jetson | None) -> str:
    if jetson is None or jetson.cuda is None:
        return f"{pip('install', root)} 'onnxruntime-gpu[cuda,cudnn]'"
    return apt_install((f"libcudnn9-cuda-{jetson.cuda.partition('-')[0]}",), root)
