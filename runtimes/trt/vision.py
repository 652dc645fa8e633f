"""Vision tower and connector through TensorRT or TensorRT-RTX, on this machine's GPU. Built, not run.

Engines are built by `tinyllava-edge build` and come from the private cache (`lookup.py`). Pixels and
embeddings are float32 in host memory: llama.cpp takes its input from there. A GPU that shares the main memory
(a Jetson) reads and writes them in place; for another one they are pinned and copied on the engine's stream.
"""

from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import Bundle, VisionSpec
from tinyllava_edge.errors import BackendError, CudaError, EngineLoadError
from tinyllava_edge.manifest import EMBEDDINGS, PIXELS
from tinyllava_edge.runtimes.access import freed_with
from tinyllava_edge.runtimes.base import BackendOptions, check_open, check_pixels

from .binding import TensorRT, open_tensorrt
from .cache import EngineCache, StoredEngine
from .cuda_objects import Buffer, Event, Graph, Stream
from .cudart import Cudart, open_cudart
from .execution import KeptKernels, batch_range, check_tensors, create_context
from .lookup import find_engine, read_board

if TYPE_CHECKING:
    import tensorrt as trt

_FLOAT_BYTES = 4


def open_vision(bundle: Bundle, options: BackendOptions, *, target: str = "tensorrt") -> "TensorRTVision":
    """Open the engine that was built here for a bundle.

    Args:
        bundle: whose vision part it is.
        options: `vision` names a variant, or None for the one that `build` chose; `device` the GPU.
        target: "tensorrt" or "tensorrt-rtx".

    Raises:
        NoEngineError: none was built on this machine, none that passed, or it is damaged.
        NoGpuError: no driver, one that is too old, or no device.
        TensorRTError: the library is not usable, or does not load the engine.
        BackendError: the engine is not of this bundle's vision part.
        UsageError: there is no GPU of that number.
    """
    binding = open_tensorrt(target)
    cuda = open_cudart(options.device)
    board = read_board(binding, cuda.read_gpu())
    with find_engine(EngineCache(), bundle, options.vision, board) as stored:
        return TensorRTVision(binding, cuda, stored, bundle.manifest.vision)


open_vision_rtx = partial(open_vision, target="tensorrt-rtx")


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """Bytes that an open engine holds.

    Attributes:
        plan: of its file, which are weights for the most part.
        context: activations and scratch, as TensorRT counts them.
        buffers: pixels and embeddings in the device's own memory; 0 where the GPU reads the host's.
        pinned: pixels and embeddings in the host's.
    """

    plan: int
    context: int
    buffers: int
    pinned: int


class TensorRTVision:
    """One engine with one execution context, its buffers and its stream.

    Args:
        binding: the library that built the engine.
        cuda: the CUDA runtime.
        stored: the engine; it may be closed afterwards.
        spec: what the manifest says of it.
        mapped: whether the GPU reads the host's memory in place; None for what `build` found faster here, and
            where it measured nothing: where the GPU shares the main memory.
        use_graph: record the work of a batch size when it comes for the second time, and launch that.

    Attributes:
        memory: what it holds.
        device_ms: time on the device of the last batch, copies included; None before.
        graph: how CUDA graphs are used: "none yet", "captured", "by TensorRT", "off", or why not.
        mapped: whether the GPU reads and writes the host's memory in place.
        note: what the user should know of the engine, as that it was built in another power mode; or "".
    """

    def __init__(
        self,
        binding: TensorRT,
        cuda: Cudart,
        stored: StoredEngine,
        spec: VisionSpec,
        *,
        mapped: bool | None = None,
        use_graph: bool = True,
    ) -> None:
        gpu = cuda.read_gpu()
        self.name = f"{binding.target} {stored.record.variant} on {gpu.name}"
        self.device_ms: float | None = None
        by_library = use_graph and binding.target == "tensorrt-rtx"
        self.graph = "by TensorRT" if by_library else "none yet" if use_graph else "off"
        self.note = stored.note
        self._binding = binding
        self._cuda = cuda
        self._spec = spec
        self._batch = 0
        self._recorded: list[Graph] = []  # one at most
        self._resources = ExitStack()
        self._free = freed_with(self, (self._recorded, self._resources), _free)
        self._engine: trt.ICudaEngine | None = None
        self._context: trt.IExecutionContext | None = None
        self._kernels: KeptKernels | None = None
        self._saved_batches: set[int] = set()
        try:
            self._runtime: trt.Runtime | None = binding.create_runtime()
            self._engine = engine = binding.deserialize(self._runtime, stored.plan)
            check_tensors(engine, spec, self.name)
            self._smallest, self._largest = batch_range(engine)
            context, self._kernels = create_context(
                binding, engine, stored.kernels, name=self.name, use_graph=use_graph
            )
            self._context = context
            faster = stored.record.facts.get("mapped", gpu.integrated) and gpu.maps_host_memory
            self.mapped = faster if mapped is None else mapped
            self._open_buffers(context)
            self.memory = EngineMemory(
                plan=stored.record.plan_bytes,
                context=engine.device_memory_size_v2,
                buffers=self._input.device_bytes + self._output.device_bytes,
                pinned=self._input.array.nbytes + self._output.array.nbytes,
            )
        except BaseException:
            self.close()
            raise

    def encode(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `VisionBackend`; more pictures than the engine's largest batch are several batches."""
        check_open(self.name, self._context is not None)
        check_pixels(self.name, pixels, self._spec.image_size)
        self._cuda.make_current()  # another thread's is the first GPU until it says so
        rows = np.empty((len(pixels), self._spec.num_tokens, self._spec.hidden_size), dtype=np.float32)
        for start in range(0, len(pixels), self._largest):
            end = start + self._largest
            self._encode_batch(pixels[start:end], rows[start:end])
        return rows

    def inspect(self) -> str:
        """What the engine's inspector says of its layers; see `fusion.read_fusion`."""
        check_open(self.name, self._engine is not None)
        return self._binding.inspect(self._engine)

    def close(self) -> None:
        """See `VisionBackend`."""
        _close_graph(self._recorded)
        self._context = None  # before the engine, and that before its runtime
        self._kernels = None
        self._engine = None
        self._runtime = None
        self._free()

    def _encode_batch(self, pixels: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]) -> None:
        """Run [batch, 3, h, w] -> [batch, tokens, hidden]; a batch under the smallest is filled up."""
        batch = max(len(pixels), self._smallest)
        is_new = batch != self._batch
        if is_new:
            self._set_batch(batch)
        values = self._input.array.view(np.float32).reshape(-1, *pixels.shape[1:])
        values[: len(pixels)] = pixels
        values[len(pixels) : batch] = 0
        if not self._recorded and not is_new and self.graph == "none yet":
            self._record()
        self._started.record(self._stream)
        if self._recorded:
            self._recorded[0].launch()
        else:
            self._enqueue()
        self._ended.record(self._stream)
        self._stream.synchronize()
        self.device_ms = self._ended.ms_since(self._started)
        if self._kernels is not None and batch not in self._saved_batches:
            self._saved_batches.add(batch)
            self._kernels.save()
        rows[:] = self._output.array.view(np.float32).reshape(-1, *rows.shape[1:])[: len(pixels)]

    def _enqueue(self) -> None:
        """Upload, run, download, as far as there is something to copy."""
        assert self._context is not None, "checked by encode"
        self._input.enqueue_upload(self._batch * self._pixel_bytes, self._stream)
        with self._binding.capture() as log:
            if not self._context.execute_async_v3(self._stream.handle):
                raise self._binding.failure(
                    EngineLoadError, f"{self.name} failed", "Build the engine again with --force", log
                )
        self._output.enqueue_download(self._batch * self._row_bytes, self._stream)

    def _record(self) -> None:
        """Record the work of this batch size as a graph; where that is not possible, go on without."""
        self._stream.begin_capture()
        try:
            self._enqueue()
            self._recorded.append(Graph(self._cuda, self._stream))
            self.graph = "captured"
        except BackendError as error:
            with suppress(CudaError):
                self._stream.abandon_capture()
            self.graph = f"not possible: {error}"

    def _set_batch(self, batch: int) -> None:
        """Set the shapes, before the first run of a batch size."""
        assert self._context is not None, "checked by encode"
        if self._recorded:
            self.graph = "none yet"
        _close_graph(self._recorded)
        self._batch = 0  # what the context holds is not known until all of this has worked
        side = self._spec.image_size
        wanted = (batch, self._spec.num_tokens, self._spec.hidden_size)
        with self._binding.capture() as log:
            is_set = self._context.set_input_shape(PIXELS, (batch, 3, side, side))
            missing = self._context.infer_shapes() if is_set else [PIXELS]
            found = tuple(self._context.get_tensor_shape(EMBEDDINGS))
            if missing or found != wanted:
                raise self._binding.failure(
                    EngineLoadError,
                    f"{self.name}: a batch of {batch} gives embeddings {list(found)}, not {list(wanted)}",
                    "Build the engine again with --force",
                    log,
                )
        self._batch = batch

    def _open_buffers(self, context: "trt.IExecutionContext") -> None:
        """Make stream, marks and buffers for the largest batch, whose addresses never change."""
        cuda, opened, mapped = self._cuda, self._resources.enter_context, self.mapped
        self._stream = opened(closing(Stream(cuda)))
        self._started, self._ended = opened(closing(Event(cuda))), opened(closing(Event(cuda)))
        self._pixel_bytes = _FLOAT_BYTES * 3 * self._spec.image_size**2
        self._row_bytes = _FLOAT_BYTES * self._spec.num_tokens * self._spec.hidden_size
        self._input = opened(closing(Buffer(cuda, self._largest * self._pixel_bytes, mapped=mapped)))
        self._output = opened(closing(Buffer(cuda, self._largest * self._row_bytes, mapped=mapped)))
        for name, buffer in ((PIXELS, self._input), (EMBEDDINGS, self._output)):
            if not context.set_tensor_address(name, buffer.address):
                raise EngineLoadError(f"{self.name}: TensorRT does not take the memory of {name}.")


def _free(owned: tuple[list[Graph], ExitStack]) -> None:
    recorded, resources = owned
    _close_graph(recorded)
    with suppress(CudaError):  # a GPU that failed refuses this too; the rest goes with the process
        resources.close()


def _close_graph(recorded: list[Graph]) -> None:
    while recorded:
        with suppress(CudaError):
            recorded.pop().close()
