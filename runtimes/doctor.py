"""What this machine can run, and the line that mends the rest."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tinyllava_edge.board_state import BoardState, read_board_state
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.cuda_files import CudaFiles, read_cuda_files
from tinyllava_edge.device import Machine, has_nvidia_gpu, read_machine
from tinyllava_edge.extras import install_line
from tinyllava_edge.install import llamacpp_line
from tinyllava_edge.installed import find_in_packages, installed_version, read_python
from tinyllava_edge.machine_files import HERE

from .doctor_board import board_lines, board_problems
from .doctor_cuda import cuda_lines, cuda_problems, gpu_fault
from .doctor_gpu import TENSORRT_PACKAGES, GpuReport, examine_gpu, gpu_lines, gpu_of_tree, gpu_problems
from .llamacpp_build import CPU_BUILD, build_fault, cpu_variant, lacks_cuda, load_mend, unused_line
from .registry import OFFERED, TWO_ONNXRUNTIMES, Entry, runtime_entries
from .trt.binding import TARGETS

PACKAGES = (
    "tinyllava-edge numpy pillow tokenizers pydantic onnxruntime onnxruntime-gpu openvino llama-cpp-python "
    "torch transformers safetensors sentencepiece onnx onnxscript gguf tensorrt tensorrt-rtx-cu13 "
    "cryptography"
)
# Module of a backend -> packages that bring it, where that is not its own name.
_BROUGHT_BY = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "llama_cpp": ("llama-cpp-python",),
    "tensorrt_rtx": TENSORRT_PACKAGES["tensorrt-rtx"],
}
_OLDEST_PYTHON = (3, 10)


@dataclass(frozen=True, kw_only=True)
class RuntimeState:
    """Whether a runtime can be opened here; `mend` is what to do where it cannot.

    `status` is "built, not run" for one that was never run on its hardware.
    """

    name: str
    usable: bool
    status: str = ""
    reason: str = ""
    mend: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything `doctor` says."""

    python: str
    llamacpp_variant: str  # of the CPU backend, "" where the build has but one
    packages: dict[str, str | None]
    machine: Machine
    board: BoardState
    cuda: CudaFiles
    gpu: GpuReport
    runtimes: tuple[RuntimeState, ...]
    problems: tuple[str, ...]


def examine(root: Path = HERE, bundle: Bundle | None = None) -> Report:
    """Look at the machine, the packages and every runtime; each runtime's packages are really imported.

    Args:
        root: of a tree that shows another machine, such as its mounted disk: nothing of it is run, and only
            what its files tell is said.
        bundle: whose needs are to be met; without one, those of a large one.
    """
    packages = package_versions(root)
    machine, board, cuda = read_machine(root), read_board_state(root), read_cuda_files(root)
    fault = gpu_fault(root, machine, board, cuda)
    gpu = examine_gpu(fault) if root == HERE else gpu_of_tree(root, fault)
    largest = max(map(bundle.variant_bytes, bundle.manifest.variants)) if bundle else None
    problems = [
        *_package_problems(root, packages, machine),
        *board_problems(root, machine, board, largest),
        *cuda_problems(root, machine, cuda, packages),
        *gpu_problems(gpu, machine, largest),
    ]
    python = read_python(root)
    return Report(
        python=f"{platform.python_version()} ({platform.python_implementation()})"
        if root == HERE
        else ".".join(map(str, python or ())) or "none",
        llamacpp_variant=cpu_variant() if root == HERE and packages["llama-cpp-python"] else "",
        packages=packages,
        machine=machine,
        board=board,
        cuda=cuda,
        gpu=gpu,
        runtimes=tuple(_examine_runtime(name, gpu, machine, root) for name in OFFERED),
        problems=tuple(problems),
    )


def lines(report: Report) -> Iterator[str]:
    """The report for people."""
    cpu, memory = report.machine.cpu, report.machine.memory
    yield f"system       {report.machine.system}, Python {report.python}"
    yield f"processor    {cpu.model}, {cpu.architecture}"
    quota = "no quota" if cpu.quota is None else f"quota {cpu.quota:g} CPUs"
    cores = f"{cpu.usable_cores} of {cpu.physical_cores} ({cpu.logical_cpus} CPUs, {quota})"
    yield f"usable cores {cores}"
    yield f"instructions {' '.join(cpu.features) or 'none of those the kernels choose by'}"
    if report.llamacpp_variant:
        yield f"llama.cpp    takes its CPU backend {report.llamacpp_variant}"
    if memory is not None:
        available, total = memory.available_bytes / (1 << 30), memory.total_bytes / (1 << 30)
        yield f"memory       {available:.1f} of {total:.1f} GiB available"
    for gpu in report.machine.gpus:
        yield f"GPU          {gpu}"
    yield from board_lines(report.machine, report.board)
    yield from cuda_lines(report.cuda)
    yield from gpu_lines(report.gpu)
    yield ""
    for name, found in report.packages.items():
        yield f"{name:17} {found or '-'}"
    yield ""
    for state in report.runtimes:
        status = f" ({state.status})" if state.status else ""
        yield f"{state.name:25} {'usable' if state.usable else f'not usable: {state.reason}'}{status}"
        if state.mend:
            yield f"{'':25} {state.mend}"
    for problem in report.problems:
        yield f"problem: {problem}"


def package_versions(root: Path = HERE) -> dict[str, str | None]:
    """Version of every package that a result may depend on; None where it is not installed."""
    return {package: installed_version(package, root) for package in PACKAGES.split()}


def _package_problems(root: Path, packages: dict[str, str | None], machine: Machine) -> Iterator[str]:
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        yield f"{TWO_ONNXRUNTIMES}: {install_line('gpu', root=root)}"
    if packages["llama-cpp-python"] and _lacks_cuda(root):
        yield f"{CPU_BUILD}: {llamacpp_line(root)}"
    elif packages["llama-cpp-python"] and root == HERE and (unused := unused_line(machine.cpu.features)):
        yield unused


def _lacks_cuda(root: Path) -> bool:
    """Whether the installed llama.cpp is a build for the CPU, and the kernel shows a GPU."""
    if root == HERE:
        return lacks_cuda()
    return has_nvidia_gpu(root) and not find_in_packages("llama_cpp/lib/*ggml-cuda*", root)


def _examine_runtime(name: str, gpu: GpuReport, machine: Machine, root: Path = HERE) -> RuntimeState:
    entries = runtime_entries(name)
    status = "" if all(entry.has_run for entry in entries) else "built, not run"
    faults = filter(None, (_fault(entry, gpu, machine, root) for entry in entries))
    reason, mend = next(faults, ("", ""))
    return RuntimeState(name=name, usable=not reason, status=status, reason=reason, mend=mend)


def _fault(entry: Entry, gpu: GpuReport, machine: Machine, root: Path) -> tuple[str, str] | None:
    """Why a backend cannot be used, and what mends it; None where it can."""
    if entry.package == "tensorrt_rtx" and machine.jetson is not None:
        return "TensorRT-RTX is for GeForce RTX cards, never for a Jetson", "take tensorrt+llamacpp"
    if entry.needs_gpu and gpu.problem and not has_nvidia_gpu(root):  # no package would help
        return gpu.problem, gpu.mend
    fault = _import_fault(entry, machine) if root == HERE else _tree_fault(entry, gpu, root)
    if fault is not None:
        return fault
    if entry.needs_gpu and entry.package == "onnxruntime" and "CUDA" not in gpu.providers:
        return "the installed onnxruntime has no CUDA", install_line("gpu", root=root)
    return (gpu.problem, gpu.mend) if entry.needs_gpu and gpu.problem else None


def _import_fault(entry: Entry, machine: Machine) -> tuple[str, str] | None:
    """What is wrong with a backend's package on this machine."""
    if not entry.is_installed:
        return f"{entry.package} is not installed", entry.install_line
    if entry.package == "llama_cpp" and (fault := build_fault(machine.cpu.features)):
        return fault, llamacpp_line()
    try:
        if entry.package:
            import_module(entry.package)
    except Exception as error:  # native libraries raise many types
        failure = " ".join(str(error).split()) or type(error).__name__
        mend = install_line(entry.extra, again=True)
        if entry.package == "llama_cpp":
            mend = load_mend(failure)
        return f"{entry.package} does not load ({failure})", mend
    return None


def _tree_fault(entry: Entry, gpu: GpuReport, root: Path) -> tuple[str, str] | None:
    """What files say against a backend's package in a tree."""
    python = read_python(root)
    if python is None or python < _OLDEST_PYTHON:
        found = "there is no Python" if python is None else f"Python {python[0]}.{python[1]} is too old"
        return f"{found}, 3.10 or newer is needed", "on a Jetson: flash JetPack 6.2 or 7.2; else install one"
    brought_by = _BROUGHT_BY.get(entry.package, (entry.package,))
    if entry.package and not any(installed_version(name, root) for name in brought_by):
        return f"{entry.package} is not installed", install_line(entry.extra, root=root)
    if entry.extra in TARGETS:
        _, oldest, _ = TARGETS[entry.extra]
        version = gpu.libraries[entry.extra]
        if tuple(map(int, version.split(".")[:2])) < oldest:
            return f"TensorRT {version} is too old", install_line(entry.extra, root=root)
    return None
