"""What this machine can run, and the line that mends the rest."""

import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from tinyllava_edge.device import Machine, read_cpu, read_machine
from tinyllava_edge.extras import install_line
from tinyllava_edge.install import llamacpp_line

from .doctor_gpu import GpuReport, examine_gpu, gpu_lines, gpu_problems
from .llamacpp_build import CPU_BUILD, build_fault, lacks_cuda
from .registry import RUNTIMES, TWO_ONNXRUNTIMES, Entry, runtime_entries

PACKAGES = (
    "tinyllava-edge numpy pillow tokenizers pydantic onnxruntime onnxruntime-gpu llama-cpp-python torch "
    "transformers safetensors sentencepiece onnx onnxscript gguf tensorrt tensorrt-rtx cryptography"
)


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
    packages: dict[str, str | None]
    machine: Machine
    gpu: GpuReport
    runtimes: tuple[RuntimeState, ...]
    problems: tuple[str, ...]


def examine() -> Report:
    """Look at the machine, the packages and every runtime; each runtime's packages are really imported."""
    packages = package_versions()
    machine, gpu = read_machine(), examine_gpu()
    problems = [*_package_problems(packages), *gpu_problems(gpu, machine)]
    return Report(
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        packages=packages,
        machine=machine,
        gpu=gpu,
        runtimes=tuple(_examine_runtime(name, gpu) for name in RUNTIMES),
        problems=tuple(problems),
    )


def lines(report: Report) -> Iterator[str]:
    """The report for people."""
    cpu, memory, jetson = report.machine.cpu, report.machine.memory, report.machine.jetson
    yield f"system       {report.machine.system}, Python {report.python}"
    yield f"processor    {cpu.model}, {cpu.architecture}"
    quota = "no quota" if cpu.quota is None else f"quota {cpu.quota:g} CPUs"
    cores = f"{cpu.usable_cores} of {cpu.physical_cores} ({cpu.logical_cpus} CPUs, {quota})"
    yield f"usable cores {cores}"
    yield f"instructions {' '.join(cpu.features) or 'none of those the kernels choose by'}"
    if memory is not None:
        available, total = memory.available_bytes / (1 << 30), memory.total_bytes / (1 << 30)
        yield f"memory       {available:.1f} of {total:.1f} GiB available"
    for gpu in report.machine.gpus:
        yield f"GPU          {gpu}"
    if jetson is not None:
        l4t, jetpack, mode = (x or "unknown" for x in (jetson.l4t, jetson.jetpack, jetson.power_mode))
        yield f"Jetson       {jetson.model}, L4T {l4t}, JetPack {jetpack}, power mode {mode}"
        module, tensorrt = jetson.module or "unknown", jetson.tensorrt or "unknown"
        yield f"             module {module}, expected TensorRT {tensorrt}"
    yield from gpu_lines(report.gpu)
    yield ""
    for name, found in report.packages.items():
        yield f"{name:16} {found or '-'}"
    yield ""
    for state in report.runtimes:
        status = f" ({state.status})" if state.status else ""
        yield f"{state.name:25} {'usable' if state.usable else f'not usable: {state.reason}'}{status}"
        if state.mend:
            yield f"{'':25} {state.mend}"
    for problem in report.problems:
        yield f"problem: {problem}"


def package_versions() -> dict[str, str | None]:
    """Version of every package that a result may depend on; None where it is not installed."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES.split())
    for package in found:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _package_problems(packages: dict[str, str | None]) -> Iterator[str]:
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        yield f"{TWO_ONNXRUNTIMES}: {install_line('gpu')}"
    if packages["llama-cpp-python"] and lacks_cuda():
        yield f"{CPU_BUILD}: {llamacpp_line()}"


def _examine_runtime(name: str, gpu: GpuReport) -> RuntimeState:
    entries = runtime_entries(name)
    status = "" if all(entry.has_run for entry in entries) else "built, not run"
    faults = filter(None, (_fault(entry, gpu) for entry in entries))
    reason, mend = next(faults, ("", ""))
    return RuntimeState(name=name, usable=not reason, status=status, reason=reason, mend=mend)


def _fault(entry: Entry, gpu: GpuReport) -> tuple[str, str] | None:
    """Why a backend cannot be used, and what mends it; None where it can."""
    if not entry.is_installed:
        return f"{entry.package} is not installed", entry.install_line
    if entry.package == "llama_cpp" and (fault := build_fault(read_cpu().features)):
        return fault, llamacpp_line()
    try:
        if entry.package:
            import_module(entry.package)
    except Exception as error:  # native libraries raise many types
        failure = " ".join(str(error).split()) or type(error).__name__
        return f"{entry.package} does not load ({failure})", install_line(entry.extra, again=True)
    if entry.needs_gpu and entry.package == "onnxruntime" and "CUDA" not in gpu.providers:
        return "the installed onnxruntime has no CUDA", entry.install_line
    return (gpu.problem, "") if entry.needs_gpu and gpu.gpu is None else None
