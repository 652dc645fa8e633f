"""Which runtimes there are: exact names, each module imported only when it is asked for."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tinyllava_edge.compute_classes import BF16_CPU, FLOAT32_CPU, ComputeClass
from tinyllava_edge.device import has_nvidia_gpu, read_cpu, read_memory
from tinyllava_edge.errors import MissingExtraError, UsageError
from tinyllava_edge.memory import return_holes
from tinyllava_edge.process import detail

from .threads import limit_openmp_spin

if TYPE_CHECKING:  # the commands read the default runtime here, and `--help` is to be quick
    from tinyllava_edge.bundle import Bundle

    from .base import BackendOptions, GraphTap, LanguageBackend, LanguageOpener, VisionBackend, VisionOpener


@dataclass(frozen=True)
class Entry:
    """Where a backend is, and what it needs.

    Attributes:
        target: "module:function" of this room that opens it.
        package: the vendor's package as it is imported, or "" for none.
        extra: our extra that installs the package.
        reads_checkpoint: whether it computes from the checkpoint, and not from the bundle's files.
        needs_gpu: whether it computes on a CUDA GPU.
        has_run: whether it was ever run on its hardware; where not, it is called "built, not run".
        tap: "module:function" of this room that opens a graph up to an inner value, "" where it has none.
        reads: target of the variants that it opens as they are, "" for one that reads none of them.
        compute: how a vision backend's products on the CPU round.
    """

    target: str
    package: str = ""
    extra: str = ""
    reads_checkpoint: bool = False
    needs_gpu: bool = False
    has_run: bool = True
    tap: str = ""
    reads: str = ""
    compute: ComputeClass = FLOAT32_CPU

    @property
    def is_installed(self) -> bool:
        """Whether the package is there; it is not imported, so it may still fail to load."""
        return not self.package or find_spec(self.package) is not None

    @property
    def install_line(self) -> str:
        """The command that installs the package."""
        from tinyllava_edge.extras import install_line

        return install_line(self.extra)


_untried = partial(Entry, needs_gpu=True, has_run=False)
_openvino = partial(Entry, package="openvino", extra="openvino")
VISION_BACKENDS = {
    "tensorrt": _untried("trt.vision:open_vision", "tensorrt", "tensorrt"),
    "tensorrt-rtx": _untried("trt.vision:open_vision_rtx", "tensorrt_rtx", "tensorrt-rtx"),
    "onnxruntime-cuda": _untried("ort:open_vision_cuda", "onnxruntime", "gpu", reads="onnx"),
    "onnxruntime": Entry("ort:open_vision", "onnxruntime", "ort", tap="ort:open_tap", reads="onnx"),
    "openvino": _openvino("openvino_vision:open_vision", tap="openvino_vision:open_tap", reads="onnx"),
    "openvino-bf16": _openvino(
        "openvino_vision:open_vision_bf16",
        tap="openvino_vision:open_tap_bf16",
        reads="onnx",
        compute=BF16_CPU,
    ),
    "torch": Entry("torch_reference:open_vision", "torch", "torch", reads_checkpoint=True),
    "scripted": Entry("scripted:open_vision"),
}
LANGUAGE_BACKENDS = {
    "llamacpp": Entry("llamacpp:open_language", "llama_cpp", "llamacpp", reads="gguf"),
    "openvino": _openvino("openvino_language:open_language", reads="openvino"),
    "openvino-bf16": _openvino("openvino_language:open_language_bf16", reads="openvino"),
    "openvino-int8": _openvino("openvino_language:open_language_int8", reads="openvino"),
    "torch": Entry("torch_reference:open_language", "torch", "torch", reads_checkpoint=True),
    "scripted": Entry("scripted:open_language"),
}
# name -> (vision backend, language backend)
RUNTIMES = {
    "tensorrt+llamacpp": ("tensorrt", "llamacpp"),
    "tensorrt-rtx+llamacpp": ("tensorrt-rtx", "llamacpp"),
    "onnxruntime-cuda+llamacpp": ("onnxruntime-cuda", "llamacpp"),
    "onnxruntime+llamacpp": ("onnxruntime", "llamacpp"),
    "openvino+llamacpp": ("openvino", "llamacpp"),
    "openvino-bf16+llamacpp": ("openvino-bf16", "llamacpp"),
    "onnxruntime+openvino": ("onnxruntime", "openvino"),
    "openvino": ("openvino", "openvino"),
    "openvino-bf16": ("openvino-bf16", "openvino-bf16"),
    "openvino-int8": ("openvino-bf16", "openvino-int8"),
    "torch": ("torch", "torch"),
    "scripted": ("scripted", "scripted"),
}
OFFERED = tuple(name for name in RUNTIMES if name != "scripted")  # which answers without a model, for tests
# What is taken where nobody names one; and what commands that compare take, and `doctor` asks for.
DEFAULT_RUNTIME, CPU_RUNTIME = "auto", "onnxruntime+llamacpp"
CUDA_RUNTIME = "onnxruntime-cuda+llamacpp"
TWO_ONNXRUNTIMES = (
    "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; keep one"
)
_VISION_PEAK = 4  # bytes that a graph may take while it is opened, by those of its file (fp16 on a CPU)
# Where nothing is for a GPU (`auto.py`).
AUTO_ORDER = (CPU_RUNTIME, "torch")


def choose_runtime(name: str) -> str:
    """The runtime's name; "auto" becomes the first one whose packages are installed, or the first of all.

    What was built for one bundle on this machine counts only where the bundle is opened (`auto.py`).

    Raises:
        UsageError: there is no such runtime; the message lists those there are.
    """
    if name == "auto":
        return next(filter(is_complete, AUTO_ORDER), AUTO_ORDER[0])
    if name not in RUNTIMES:
        raise UsageError(f"there is no runtime {name!r}. Known: auto, {', '.join(OFFERED)}.")
    return name


def is_complete(runtime: str) -> bool:
    """Whether the packages of a runtime in `RUNTIMES` are installed."""
    return all(entry.is_installed for entry in runtime_entries(runtime))


def runtime_entries(runtime: str) -> tuple[Entry, Entry]:
    """The vision and the language backend of a runtime in `RUNTIMES`."""
    vision, language = RUNTIMES[runtime]
    return VISION_BACKENDS[vision], LANGUAGE_BACKENDS[language]


def language_target(runtime: str) -> str:
    """Target of the language variants that a runtime in `RUNTIMES` opens; "" where it reads none of them."""
    return runtime_entries(runtime)[1].reads


def targets(runtime: str) -> tuple[str, str] | None:
    """What a runtime reads of vision and language, or None where it computes without a bundle's variants."""
    vision, language = runtime_entries(runtime)
    return (vision.reads, language.reads) if vision.reads and language.reads else None


def cpu_runtimes() -> list[str]:
    """Installed runtimes that compute a bundle's variants on the CPU."""
    return [
        runtime
        for runtime in RUNTIMES
        if targets(runtime) and is_complete(runtime)
        if not any(entry.needs_gpu for entry in runtime_entries(runtime))
    ]


def vision_opener(name: str) -> "VisionOpener":
    """Import the vision backend of that name.

    Raises:
        UsageError: there is none; the message lists those there are.
        MissingExtraError: its package is not installed; the message has the line that installs it.
    """
    return _import_opener(VISION_BACKENDS, name)


def graph_tap(name: str) -> "GraphTap":
    """What opens a graph up to an inner value, as that backend computes it; raises as `vision_opener`."""
    return _import_opener({known: replace(e, target=e.tap) for known, e in VISION_BACKENDS.items()}, name)


def language_opener(name: str) -> "LanguageOpener":
    """Import the language backend of that name; raises as `vision_opener` does."""
    return _import_opener(LANGUAGE_BACKENDS, name)


def open_backends(
    runtime: str, bundle: "Bundle", options: "BackendOptions"
) -> "tuple[VisionBackend, LanguageBackend]":
    """Open both backends of a runtime in `RUNTIMES`.

    Raises:
        BackendError: one of them does not work on this machine, or not with these options.
        BundleError: the bundle has no such variant, its parts do not fit together, or a file was changed.
        UsageError: an option is one that the runtime does not have.
    """
    reads_checkpoint = any(entry.reads_checkpoint for entry in runtime_entries(runtime))
    if not reads_checkpoint and (options.checkpoint or options.sources or options.allow_pickle):
        raise UsageError(
            f"runtime {runtime} computes from the bundle's files and reads no checkpoint. "
            "Leave --checkpoint, --sources and --allow-pickle out, or take --runtime torch."
        )
    vision_name, language_name = RUNTIMES[runtime]
    open_vision, open_language = vision_opener(vision_name), language_opener(language_name)
    with ExitStack() as unless_both:
        beside = _begin(open_language, bundle, options) if opens_side_by_side(runtime, bundle) else None
        if beside is not None:
            unless_both.callback(_close_opened, beside)
        detail(f"{runtime}: opening {bundle.root}{', both halves at once' if beside else ''}")
        vision = open_vision(bundle, options)
        detail(f"vision: {vision.name}")
        unless_both.callback(vision.close)
        return_holes()  # what it was read from: as much as the weights again
        language = open_language(bundle, options) if beside is None else beside.result()
        if beside is None:
            unless_both.callback(language.close)
        detail(f"language: {language.name}")
        bundle.check_unchanged()
        unless_both.pop_all()
        return vision, language


def opens_side_by_side(runtime: str, bundle: "Bundle") -> bool:
    """Whether both halves of a runtime are opened at the same time: two libraries on the CPU's cores.

    A GPU's layers are counted by what the vision engine has left of it, so there one comes after the other;
    likewise where memory may not hold what both take at their most.
    """
    halves = runtime_entries(runtime)
    libraries = {half.package for half in halves if not half.reads_checkpoint} - {""}
    if has_nvidia_gpu() or len(libraries) < 2:
        return False
    largest = {"vision": 0, "language": 0}
    for variant in bundle.manifest.variants:
        largest[variant.part] = max(largest[variant.part], bundle.variant_bytes(variant))
    needed, memory = _VISION_PEAK * largest["vision"] + largest["language"], read_memory()
    return read_cpu().usable_cores > 1 and memory is not None and needed < memory.available_bytes


def _begin(
    open_language: "LanguageOpener", bundle: "Bundle", options: "BackendOptions"
) -> "Future[LanguageBackend]":
    """Open a language backend in a thread of its own, which ends with that."""
    limit_openmp_spin()  # sets a variable, which is not to be done while another thread reads them
    executor = ThreadPoolExecutor(1, "open-language")
    opened = executor.submit(open_language, bundle, options)
    executor.shutdown(wait=False)
    return opened


def _close_opened(beside: "Future[LanguageBackend]") -> None:
    """Close what another thread opens, as soon as it has."""
    if beside.exception() is None:
        beside.result().close()


def _import_opener(table: Mapping[str, Entry], name: str) -> Callable[..., Any]:
    if name not in table:
        raise UsageError(f"there is no backend {name!r}. Known: {', '.join(table)}.")
    entry = table[name]
    if not entry.is_installed:
        raise MissingExtraError(f"backend {name} needs the package {entry.package}: {entry.install_line}")
    module, _, function = entry.target.partition(":")
    opener: Callable[..., Any] = getattr(import_module(f".{module}", __package__), function)
    return opener
