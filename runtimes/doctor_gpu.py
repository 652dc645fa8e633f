"""The GPU's part of `doctor`: device, driver, libraries, engine cache, and what a Jetson needs."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from tinyllava_edge.device import Jetson, Machine, read_driver
from tinyllava_edge.errors import BackendError
from tinyllava_edge.runtimes.trt.binding import TARGETS, open_tensorrt
from tinyllava_edge.runtimes.trt.cache import EngineCache, engine_folder
from tinyllava_edge.runtimes.trt.cudart import Gpu, open_cudart

# Below this JetPack 6 fails on large allocations: docs/sources/tensorrt.md#contiguous-memory.
JETPACK6_CMA_BYTES = 900 << 20


@dataclass(frozen=True, kw_only=True)
class CacheState:
    """What the engine cache holds.

    Attributes:
        folder: where it is.
        engines: for each engine its variant, status, GPU and library.
        damaged: records that cannot be used; they are built again.
        nbytes: of all plans.
        problem: why it cannot be used at all, or "".
    """

    folder: str
    engines: tuple[str, ...] = ()
    damaged: int = 0
    nbytes: int = 0
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class GpuReport:
    """What there is to compute on a GPU with.

    Attributes:
        gpu: the first CUDA device, or None.
        problem: why there is none.
        driver: version of the kernel's driver, or None.
        libraries: "tensorrt" and "tensorrt-rtx" -> version, or why it is not usable.
        providers: what ONNX Runtime says it has; a session may still not get it.
        cache: the engines built here.
    """

    gpu: Gpu | None
    problem: str
    driver: str | None
    libraries: dict[str, str]
    providers: tuple[str, ...]
    cache: CacheState


def examine_gpu() -> GpuReport:
    """Look at the GPU, its libraries and the engine cache; nothing is changed."""
    gpu, problem = None, ""
    try:
        gpu = open_cudart().read_gpu()
    except BackendError as error:
        problem = str(error)
    return GpuReport(
        gpu=gpu,
        problem=problem,
        driver=read_driver(),
        libraries={target: _library(target) for target in TARGETS},
        providers=_providers(),
        cache=read_cache(),
    )


def read_cache() -> CacheState:
    """The engine cache as it is; it is not made where there is none."""
    folder = engine_folder()
    if not folder.is_dir():
        return CacheState(folder=str(folder))
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
        damaged=len(found) - len(records),
        nbytes=sum(path.stat().st_size for path in folder.glob("*.plan")),
    )


def gpu_lines(report: GpuReport) -> Iterator[str]:
    """The report for people."""
    if report.gpu is None:
        yield f"CUDA         none: {report.problem}"
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
    damaged = f", {cache.damaged} damaged" if cache.damaged else ""
    state = f"{len(cache.engines)} engines{damaged}, {cache.nbytes >> 20} MiB, {cache.folder}"
    yield f"engine cache {cache.problem or state}"
    for engine in cache.engines:
        yield f"             {engine}"


def gpu_problems(report: GpuReport, machine: Machine) -> Iterator[str]:
    """What is wrong and can be mended."""
    if machine.jetson is not None:
        yield from _jetson_problems(machine.jetson, report.libraries["tensorrt"])
    if report.cache.problem:
        yield report.cache.problem
    if report.gpu is None and machine.gpus:
        yield f"nvidia-smi shows {machine.gpus[0]}, but CUDA does not start: {report.problem}"


def _jetson_problems(jetson: Jetson, tensorrt: str) -> Iterator[str]:
    expected, cma = jetson.tensorrt, jetson.cma_bytes
    if jetson.jetpack == "6.0":
        yield "JetPack 6.0 has TensorRT 8.6, engines need 10.3: update to JetPack 6.2 (sudo apt dist-upgrade)"
    elif expected and tensorrt[:1].isdigit() and expected.split(".")[:2] != tensorrt.split(".")[:2]:
        yield (
            f"TensorRT {tensorrt} is installed, JetPack {jetson.jetpack} has {expected}: a pip wheel "
            "is for another CUDA than the board's. pip uninstall -y tensorrt, and sudo apt install "
            "python3-libnvinfer"
        )
    if (jetson.jetpack or "").startswith("6.") and cma is not None and cma < JETPACK6_CMA_BYTES:
        yield (
            f"CmaTotal is {cma >> 20} MiB: on JetPack 6 large engines fail with NvMap error "
            "12; add cma=950M to APPEND in /boot/extlinux/extlinux.conf and reboot"
        )
    if jetson.power_mode and not jetson.power_mode.upper().startswith("MAXN"):
        yield (
            f"power mode is {jetson.power_mode}: for full speed take the MAXN mode of /etc/nvpmodel.conf "
            "by its number (sudo nvpmodel -m N), then sudo jetson_clocks"
        )


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
