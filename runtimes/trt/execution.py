"""A loaded engine: is it this bundle's, and its execution context; of TensorRT-RTX with its kept kernels."""

from typing import TYPE_CHECKING

from tinyllava_edge.bundle import VisionSpec
from tinyllava_edge.console import note
from tinyllava_edge.errors import EngineLoadError, NoEngineError
from tinyllava_edge.manifest import EMBEDDINGS, PIXELS

from .binding import TensorRT
from .kernel_file import KernelFile

if TYPE_CHECKING:
    import tensorrt as trt


class KeptKernels:
    """TensorRT-RTX's runtime cache: kernels that it compiles at the first run, kept for the next start.

    Without it every start compiles all of them. Of another version or GPU the library takes none, and
    compiles: docs/sources/tensorrt.md#runtime-cache.
    """

    def __init__(self, config: "trt.IRuntimeConfig", file: KernelFile) -> None:
        self._file = file
        self._cache: trt.IRuntimeCache = config.create_runtime_cache()
        self._kept = self._load()
        config.set_runtime_cache(self._cache)

    def _load(self) -> bytes:
        try:
            kept = self._file.read()
        except NoEngineError as error:
            note(f"compiled kernels: {error}; they are compiled again, which takes longer this once.")
            return b""
        if kept and not self._cache.deserialize(kept):
            note(
                f"compiled kernels: TensorRT-RTX does not take {self._file.path.name}, of another version or "
                "GPU; they are compiled again, which takes longer this once."
            )
            return b""
        return kept

    def save(self) -> None:
        """Keep what has been compiled; called after a run."""
        blob: trt.IHostMemory | None = self._cache.serialize()
        kernels = b"" if blob is None else bytes(memoryview(blob))
        if kernels in (b"", self._kept):
            return
        self._kept = kernels  # tried once, whether or not there is room
        try:
            self._file.write(kernels)
        except OSError as error:
            note(f"compiled kernels are not kept, so that the next start compiles them again: {error}")


def create_context(
    binding: TensorRT, engine: "trt.ICudaEngine", kernels: KernelFile | None, *, name: str, use_graph: bool
) -> "tuple[trt.IExecutionContext, KeptKernels | None]":
    """The execution context, and of TensorRT-RTX what keeps its kernels; it records graphs by itself.

    Raises:
        EngineLoadError: there is not enough memory for it.
    """
    kept = None
    with binding.capture() as log:
        if binding.target == "tensorrt-rtx":
            config: trt.IRuntimeConfig = engine.create_runtime_config()
            if use_graph:
                config.cuda_graph_strategy = binding.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if kernels is not None:
                kept = KeptKernels(config, kernels)
            context: trt.IExecutionContext | None = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context()
        if context is None:
            raise binding.failure(
                EngineLoadError,
                f"{name}: no execution context",
                f"It needs {engine.device_memory_size_v2 >> 20} MiB beside the weights: close other "
                "programs, or build with a smaller --max-batch",
                log,
            )
        return context, kept


def check_tensors(engine: "trt.ICudaEngine", spec: VisionSpec, name: str) -> None:
    """Hold an engine's inputs and outputs against the manifest; "batch" stands for any number.

    Raises:
        EngineLoadError: it is not of this bundle's vision part.
    """
    side = spec.image_size
    wanted = {
        PIXELS: ("INPUT", "FLOAT", "DEVICE", [3, side, side]),
        EMBEDDINGS: ("OUTPUT", "FLOAT", "DEVICE", [spec.num_tokens, spec.hidden_size]),
    }
    found = {}
    for index in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(index)
        facts = (
            engine.get_tensor_mode(tensor),
            engine.get_tensor_dtype(tensor),
            engine.get_tensor_location(tensor),
        )
        found[tensor] = (*(fact.name for fact in facts), list(engine.get_tensor_shape(tensor))[1:])
    if found != wanted:
        raise EngineLoadError(f"{name}: expected {wanted}, found {found}. Export the bundle again.")


def batch_range(engine: "trt.ICudaEngine") -> tuple[int, int]:
    """Least and largest batch: of the one profile, or of a graph whose batch is fixed."""
    batch = engine.get_tensor_shape(PIXELS)[0]
    if batch >= 1:
        return batch, batch
    least, _, largest = engine.get_tensor_profile_shape(PIXELS, 0)
    return least[0], largest[0]
