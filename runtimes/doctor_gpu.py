"""The GPU's part of `doctor`: device, driver, libraries and engine cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tinyllava_edge.device import Machine, read_driver
from tinyllava_edge.errors import BackendError
from tinyllava_edge.full_disk import free_bytes
from tinyllava_edge.installed import find_in_packages, installed_version
from tinyllava_edge.runtimes.trt.binding import TARGETS, open_tensorrt
from tinyllava_edge.runtimes.trt.cache import EngineCache, engine_folder
from tinyllava_edge.runtimes.trt.cudart import Gpu, open_cudart

from .doctor_cuda import Fault

# What a vision tower's engine and a build's scratch files take at least.
LEAST_FREE_BYTES = 2 << 30
# Our name of the library -> names of the packages that bring it.
TENSORRT_PACKAGES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13")}


@dataclass(frozen=True, kw_only=True)
class CacheState:
    """What the engine cache holds.

    Attributes:
        folder: where it is.
        engines: for each engine its variant, status, GPU and library.
        libraries: "tensorrt 10.3.0" for each library that engines are of.
        damaged: records that cannot be used; they are built again.
        nbytes: of all plans.
        free_bytes: on its disk; None where that was not looked at.
        problem: why it cannot be used at all, or "".
    """

    folder: str
    engines: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    damaged: int = 0
    nbytes: int = 0
    free_bytes: int | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class GpuReport:
    """What there is to compute on a GPU with.

    Attributes:
        gpu: the first CUDA device, or None.
        problem: why there is none; "" in a tree whose files speak for one.
        mend: what to do about that.
        driver: version of the kernel's driver, or None.
        libraries: "tensorrt" and "tensorrt-rtx" -> version, or why it is not usable.
        providers: what ONNX Runtime says it has; a session may still not get it.
        cache: the engines built here.
    """

    gpu: Gpu | None
    problem: str
    driver: str | None
    mend: str = ""
    libraries: dict[str, str]
    providers: tuple[str, ...]
    cache: CacheState


def examine_gpu(fault: Fault | None = None) -> GpuReport:
    """Look at the GPU, its libraries and the engine cache; nothing is changed.

    Args:
        fault: what files say against a GPU; CUDA's own word counts, and this has the line that mends it.
    """
    gpu, problem = None, ""
    try:
        gpu = open_cudart().read_gpu()
    except BackendError as error:
        problem = str(error)
    if fault:  # what it advises would stand beside another advice
        problem = problem.split(". ")[0]
    return GpuReport(
        gpu=gpu,
        problem=problem,
        mend=fault.mend if problem and fault else "",
        driver=read_driver(),
        libraries={target: _library(target) for target in TARGETS},
        providers=_providers(),
        cache=read_cache(),
    )


def gpu_of_tree(root: Path, fault: Fault | None) -> GpuReport:
    """What files of a tree say; nothing of it is run, and no engine cache is looked for."""
    libraries = {target: _packaged(names, root) for target, names in TENSORRT_PACKAGES.items()}
    capi = "onnxruntime/capi/libonnxruntime"
    providers = [
        name
        for name, file in (("CUDA", f"{capi}_providers_cuda.so"), ("CPU", f"{capi}*.so*"))
        if find_in_packages(file, root)
    ]
    return GpuReport(
        gpu=None,
        problem=fault.reason if fault else "",
        mend=fault.mend if fault else "",
        driver=read_driver(root),
        libraries=libraries,
        providers=tuple(providers),
        cache=CacheState(folder=""),
    )


def _packaged(names: tuple[str, ...], root: Path) -> str:
    versions = (installed_version(name, root) for name in names)
    return next(filter(None, versions), "none: not installed")


def read_cache() -> CacheState:
    """The engine cache as it is; it is not made where there is none."""
    folder = engine_folder()
    if not folder.is_dir():
        return CacheState(folder=str(folder), free_bytes=free_bytes(folder))
    try:
        found = list(EngineCache().records())
    except BackendError as error:
        return CacheState(folder=str(folder), problem=str(error))
    records = [record for _, record in found if record is not None]
    return CacheState(
        folder=str(folder),
        engines=tuple(
            f"{r.variant}: {r.status}, {r.key.board.library} {r.key.board.library_version}, "
            f"{r.key.board.gpu} SM {r.key.board.sm}, {r.plan_bytes >> 20} MiB, "
            f"{r.facts['fusion'] + ', ' if 'fusion' in r.facts else ''}{r.origin}"
            for r in records
        ),
        libraries=tuple(sorted({f"{r.key.board.library} {r.key.board.library_version}" for r in records})),
        damaged=len(found) - len(records),
        nbytes=sum(path.stat().st_size for path in folder.glob("*.plan")),
        free_bytes=free_bytes(folder),
    )


def gpu_lines(report: GpuReport) -> Iterator[str]:
    """The report for people."""
    if report.gpu is None:
        yield f"CUDA         {f'none: {report.problem}' if report.problem else 'usable, as files tell'}"
    else:
        gpu = report.gpu
        memory = "shares the main memory" if gpu.integrated else "memory of its own"
        yield (
            f"CUDA         {gpu.name}, SM {gpu.sm}, {gpu.multiprocessors} multiprocessors, {memory}; driver "
            f"{report.driver or 'unknown'} (CUDA {gpu.driver_cuda}), runtime {gpu.runtime_cuda}"
        )
    for target, found in report.libraries.items():
        yield f"{target:12} {found}"
    yield f"providers    {', '.join(report.providers) or 'no onnxruntime'}"
    cache = report.cache
    if not cache.folder:  # of a tree
        return
    damaged = f", {cache.damaged} damaged" if cache.damaged else ""
    state = f"{len(cache.engines)} engines{damaged}, {cache.nbytes >> 20} MiB, {cache.folder}"
    if cache.free_bytes is not None:
        state += f", {cache.free_bytes / (1 << 30):.1f} GiB free"
    yield f"engine cache {cache.problem or state}"
    for engine in cache.engines:
        yield f"             {engine}"


def gpu_problems(report: GpuReport, machine: Machine, largest_bytes: int | None = None) -> Iterator[str]:
    """What is wrong and can be mended.

    Args:
        report: of the GPU.
        machine: that it is in.
        largest_bytes: of the largest variant of the bundle asked about, or None.
    """
    jetson, found = machine.jetson, report.libraries["tensorrt"]
    expected = jetson.tensorrt if jetson else None
    if expected and int(expected.split(".")[0]) < 10:  # too old for us: said of the board
        expected = None
    if jetson and expected and found[:1].isdigit() and expected.split(".")[:2] != found.split(".")[:2]:
        yield (
            f"TensorRT {found} is installed, JetPack {jetson.jetpack} has {expected}: a pip wheel "
            "is for another CUDA than the board's. pip uninstall -y tensorrt, and sudo apt install "
            "python3-libnvinfer"
        )
    if report.cache.problem:
        yield report.cache.problem
    there = {f"{target} {version}" for target, version in report.libraries.items()}
    if others := [one for one in report.cache.libraries if one not in there]:
        yield (
            f"there are engines of {', '.join(others)}, which is not what is installed: they are not used. "
            "tinyllava-edge build BUNDLE makes new ones"
        )
    # An engine is as large as its weights, and is written twice while it is built.
    needed, free = max(LEAST_FREE_BYTES, 2 * (largest_bytes or 0)), report.cache.free_bytes
    if (report.gpu or machine.jetson) and free is not None and free < needed:
        yield (
            f"{free / (1 << 30):.1f} GiB are free for engines ({report.cache.folder}), a build wants "
            f"{needed / (1 << 30):.1f}: remove something, or let XDG_CACHE_HOME name another disk"
        )
    if report.gpu is None and machine.gpus:
        yield f"nvidia-smi shows {machine.gpus[0]}, but CUDA does not start: {report.problem}"


def _library(target: str) -> str:
    """Version, or why it is not usable."""
    try:
        return open_tensorrt(target).version_text
    except BackendError as error:
        return f"none: {error}"


def _providers() -> tuple[str, ...]:
    if find_spec("onnxruntime") is None:
        return ()
    try:
        from .ort import offered_providers

        return offered_providers()
    except Exception as error:  # two wheels that overwrote each other break in many ways
        return (f"onnxruntime does not load ({' '.join(str(error).split())})",)
