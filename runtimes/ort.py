"""Vision tower and connector through ONNX Runtime, on the CPU or, built and not run, on a CUDA GPU.

ONNX Runtime lists CUDA as available where there is no driver, and takes the CPU where a session cannot have
it, with a warning only. So the provider that a session really has is compared with what was asked for.
"""

from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, distribution
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from tinyllava_edge.bundle import Bundle, VisionSpec
from tinyllava_edge.device import read_cpu
from tinyllava_edge.errors import BackendError, BundleError
from tinyllava_edge.extras import install_line
from tinyllava_edge.manifest import EMBEDDINGS, PIXELS

from .access import freed_with, let_forks_end
from .base import BackendOptions, check_embeddings, check_open, check_pixels
from .registry import TWO_ONNXRUNTIMES
from .threads import thread_budget

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = [CPU]
# Every option that changes memory, speed or numbers, none left to a default that differs between versions.
CUDA_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",  # a vision graph asks once; no doubling
    "cudnn_conv_algo_search": "HEURISTIC",  # one convolution, for which a long search at the start is no gain
    "use_tf32": "0",  # float32 is float32
    "enable_cuda_graph": "0",  # needs every node on the GPU, and shape nodes are computed on the CPU
    "do_copy_in_default_stream": "1",
}
_CUDA_MEMORY_SHARE = 4  # of the variant's size: weights, activations, cuDNN's scratch
_CUDA_MEMORY_LEAST = 1 << 30
_ERRORS_ONLY = 3


def open_vision(bundle: Bundle, options: BackendOptions) -> "OnnxVision":
    """Open a bundle's ONNX variant.

    Raises:
        BackendError: ONNX Runtime refuses the graph, or computes it elsewhere than asked.
        BundleError: no such variant, or its inputs and outputs are not what the manifest says.
    """
    return _open(OnnxVision, "onnxruntime", bundle, options)


def open_vision_cuda(bundle: Bundle, options: BackendOptions) -> "OnnxVision":
    """Open a bundle's ONNX variant on a CUDA GPU; raises as `open_vision`, and without CUDA."""
    return _open(OnnxCudaVision, "onnxruntime-cuda", bundle, options)


def _open(kind: "type[OnnxVision]", name: str, bundle: Bundle, options: BackendOptions) -> "OnnxVision":
    asked = options.vision or (_default_here(bundle) if kind is OnnxVision else None)
    variant = bundle.variant("vision", asked)
    if variant.target != "onnx":
        raise BundleError(f"vision variant {variant.name} is {variant.target}; onnxruntime runs onnx.")
    return kind(
        bundle.path(variant.files[0]),
        bundle.manifest.vision,
        name=f"{name} {variant.name}",
        threads=options.threads,
        number=options.device,
        memory_limit_bytes=max(_CUDA_MEMORY_LEAST, _CUDA_MEMORY_SHARE * bundle.variant_bytes(variant)),
    )


def _default_here(bundle: Bundle) -> str | None:
    """fp32 or int8 where a convolution of fp16 would be summed in float16, which int8 (float32) is not."""
    if "asimdhp" not in read_cpu().features:
        return None
    verified = [
        v.precision for v in bundle.manifest.variants if v.part == "vision" and v.status == "verified"
    ]
    return next((name for name in ("fp32", "int8") if name in verified), None)


class OnnxVision:
    """One ONNX Runtime session.

    Args:
        path: the graph.
        spec: what the manifest says of it.
        name: for people.
        threads: see `thread_budget`.
        number: of the GPU, where it is one.
        memory_limit_bytes: of the session's memory on a GPU.
    """

    def __init__(
        self,
        path: Path,
        spec: VisionSpec,
        *,
        name: str,
        threads: int | None = None,
        number: int = 0,
        memory_limit_bytes: int = _CUDA_MEMORY_LEAST,
    ) -> None:
        self.name = name
        self._number = number
        self._memory_limit_bytes = memory_limit_bytes
        self._image_size = spec.image_size
        self._output_shape = (spec.num_tokens, spec.hidden_size)
        let_forks_end()
        options = session_options(thread_budget(threads))
        providers = self._providers()
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"{path}: ONNX Runtime cannot load it ({_first_line(error)}).") from None
        self._free = freed_with(self, self._session)
        self._check_providers(path, [p if isinstance(p, str) else p[0] for p in providers])
        self._check_shapes(path)

    def encode(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `VisionBackend`."""
        check_open(self.name, self._session is not None)
        check_pixels(self.name, pixels, self._image_size)
        try:
            embeddings: npt.NDArray[np.float32] = self._run(pixels)
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"{self.name}: ONNX Runtime failed ({_first_line(error)}).") from None
        check_embeddings(self.name, embeddings, (len(pixels), *self._output_shape))
        return embeddings

    def close(self) -> None:
        """See `VisionBackend`."""
        self._session = None
        self._free()

    def _providers(self) -> list[Any]:
        return list(PROVIDERS)

    def _run(self, pixels: npt.NDArray[np.float32]) -> Any:
        return self._session.run([EMBEDDINGS], {PIXELS: pixels})[0]

    def _check_providers(self, path: Path, wanted: list[str]) -> None:
        """ONNX Runtime takes the CPU silently where it cannot have what was asked for."""
        obtained = self._session.get_providers()
        if obtained != wanted:
            raise BackendError(
                f"{path}: asked ONNX Runtime for {wanted}, it took {obtained}. Is there a driver, and the "
                "CUDA and cuDNN that this ONNX Runtime was made for? See tinyllava-edge doctor."
            )

    def _check_shapes(self, path: Path) -> None:
        ends = (self._session.get_inputs(), self._session.get_outputs())
        found = [{node.name: (node.type, list(node.shape[1:])) for node in nodes} for nodes in ends]
        pixels, embeddings = [3, self._image_size, self._image_size], list(self._output_shape)
        wanted = [{PIXELS: ("tensor(float)", pixels)}, {EMBEDDINGS: ("tensor(float)", embeddings)}]
        if found != wanted:
            raise BundleError(f"{path}: expected {wanted}, found {found}. Export the bundle again.")


def open_tap(
    path: Path, name: str, threads: int | None
) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """See `base.GraphTap`."""
    options = session_options(thread_budget(threads))
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS)
    return lambda pixels: np.asarray(session.run([name], {PIXELS: pixels})[0], dtype=np.float32)


class OnnxCudaVision(OnnxVision):
    """A session on a CUDA GPU, with its output bound to `device` and copied once."""

    device = "cuda"

    def _providers(self) -> list[Any]:
        check_cuda_offered()
        if hasattr(onnxruntime, "preload_dlls"):  # finds CUDA and cuDNN of pip; says what it misses
            with redirect_stdout(StringIO()):
                onnxruntime.preload_dlls()
        own = {"device_id": str(self._number), "gpu_mem_limit": str(self._memory_limit_bytes)}
        return [(CUDA, {**CUDA_OPTIONS, **own}), CPU]  # the CPU for the nodes of shapes

    def _run(self, pixels: npt.NDArray[np.float32]) -> Any:
        binding = self._session.io_binding()
        binding.bind_cpu_input(PIXELS, np.ascontiguousarray(pixels))
        binding.bind_output(EMBEDDINGS, self.device, self._number)
        self._session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0]


def offered_providers() -> tuple[str, ...]:
    """What this ONNX Runtime was built with; a session may still not get it."""
    return tuple(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())


def check_cuda_offered() -> None:
    """Refuse an ONNX Runtime that was built without CUDA, and two that lie over each other.

    Raises:
        BackendError: says which package to install, and what to remove first.
    """
    if all(map(_is_distributed, ("onnxruntime", "onnxruntime-gpu"))):
        raise BackendError(f"{TWO_ONNXRUNTIMES}: {install_line('gpu')}")
    if CUDA not in onnxruntime.get_available_providers():
        raise BackendError(
            f"the installed onnxruntime {onnxruntime.__version__} has no CUDA. Put the one that has in its "
            f"place: {install_line('gpu')}"
        )


def session_options(num_threads: int) -> Any:
    """Options of every session here, none left to a default that differs between versions."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = False  # a block of its own from the second picture on: 98 MB, and no faster
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads.py has the figures
    if read_cpu().saturates_int8:  # weights become uint8, whose sums are not cut off: slower, and right
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _is_distributed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
