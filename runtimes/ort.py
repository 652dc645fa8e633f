"""Vision tower and connector through ONNX Runtime, on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from tinyllava_edge.bundle import Bundle, VisionSpec
from tinyllava_edge.errors import BackendError, BundleError

from .base import BackendOptions, check_open, check_pixels
from .threads import thread_budget

PROVIDERS = ["CPUExecutionProvider"]
INPUT, OUTPUT = "pixels", "embeddings"
_ERRORS_ONLY = 3


def open_vision(bundle: Bundle, options: BackendOptions) -> "OnnxVision":
    """Open a bundle's ONNX variant.

    Raises:
        BackendError: ONNX Runtime refuses the graph, or computes it elsewhere than asked.
        BundleError: no such variant, or its inputs and outputs are not what the manifest says.
    """
    variant = bundle.variant("vision", options.vision)
    if variant.target != "onnx":
        raise BundleError(f"vision variant {variant.name} is {variant.target}; onnxruntime runs onnx.")
    path = bundle.path(variant.files[0])
    return OnnxVision(
        path, bundle.manifest.vision, name=f"onnxruntime {variant.name}", threads=options.threads
    )


class OnnxVision:
    """One ONNX Runtime session.

    Args:
        path: the graph.
        spec: what the manifest says of it.
        name: for people.
        threads: see `thread_budget`.
    """

    def __init__(self, path: Path, spec: VisionSpec, *, name: str, threads: int | None = None) -> None:
        self.name = name
        self._image_size = spec.image_size
        self._output_shape = (spec.num_tokens, spec.hidden_size)
        options = session_options(thread_budget(threads))
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS)
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"{path}: ONNX Runtime cannot load it ({_first_line(error)}).") from None
        self._check_providers(path)
        self._check_shapes(path)

    def encode(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `VisionBackend`."""
        check_open(self.name, self._session is not None)
        check_pixels(self.name, pixels, self._image_size)
        try:
            [embeddings] = self._session.run([OUTPUT], {INPUT: pixels})
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"{self.name}: ONNX Runtime failed ({_first_line(error)}).") from None
        if embeddings.shape != (len(pixels), *self._output_shape) or embeddings.dtype != np.float32:
            raise BackendError(
                f"{self.name}: expected embeddings {[len(pixels), *self._output_shape]} float32, found "
                f"{list(embeddings.shape)} {embeddings.dtype}."
            )
        rows: npt.NDArray[np.float32] = embeddings
        return rows

    def close(self) -> None:
        """See `VisionBackend`."""
        self._session = None

    def _check_providers(self, path: Path) -> None:
        """ONNX Runtime takes the CPU silently where it cannot have what was asked for."""
        obtained = self._session.get_providers()
        if obtained != PROVIDERS:
            raise BackendError(
                f"{path}: asked ONNX Runtime for {PROVIDERS}, it took {obtained}. See tinyllava-edge doctor."
            )

    def _check_shapes(self, path: Path) -> None:
        inputs = {node.name: (node.type, list(node.shape[1:])) for node in self._session.get_inputs()}
        outputs = {node.name: (node.type, list(node.shape[1:])) for node in self._session.get_outputs()}
        wanted_inputs = {INPUT: ("tensor(float)", [3, self._image_size, self._image_size])}
        wanted_outputs = {OUTPUT: ("tensor(float)", list(self._output_shape))}
        if inputs != wanted_inputs or outputs != wanted_outputs:
            raise BundleError(
                f"{path}: expected {wanted_inputs} -> {wanted_outputs}, found {inputs} -> {outputs}. "
                "Export the bundle again."
            )


def session_options(num_threads: int) -> Any:
    """Options of every session here, none left to a default that differs between versions."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads.py has the figures
    return options


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
