"""Vision tower and connector through OpenVINO on the CPU, from the bundle's own ONNX.

It computes in float32, or in bfloat16 where that is asked for by the runtime's name: the same graph in half
the time on a processor with instructions for it, and with other numbers, which `verify` judges as such.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import Bundle, VisionSpec
from tinyllava_edge.compute_classes import BF16_CPU, FLOAT32_CPU, ComputeClass
from tinyllava_edge.device import read_cpu
from tinyllava_edge.errors import BackendError, BundleError
from tinyllava_edge.manifest import EMBEDDINGS, PIXELS

from .access import freed_with
from .base import BackendOptions, check_embeddings, check_open, check_pixels
from .openvino_library import compile_model, read_model, said

_FLOAT32 = "f32"


def _open(compute: ComputeClass, bundle: Bundle, options: BackendOptions) -> "OpenVinoVision":
    """Open a bundle's ONNX variant.

    Raises:
        BackendError: OpenVINO refuses the graph, or this processor computes it otherwise than asked.
        BundleError: no such variant, or its inputs and outputs are not what the manifest says.
    """
    variant = bundle.variant("vision", options.vision)
    if variant.target != "onnx":
        raise BundleError(f"vision variant {variant.name} is {variant.target}; openvino runs onnx.")
    if variant.name == "int8" and read_cpu().saturates_int8:
        raise BackendError(
            "this processor cuts sums of int8 off at 16 bits (it has no VNNI), which OpenVINO does not "
            "avoid. Take another --vision, or a runtime with onnxruntime, which does."
        )
    return OpenVinoVision(
        bundle.path(variant.files[0]),
        bundle.manifest.vision,
        name=f"openvino{'-bf16' if compute == BF16_CPU else ''} {variant.name}",
        compute=compute,
        threads=options.threads,
    )


open_vision, open_vision_bf16 = (partial(_open, compute) for compute in (FLOAT32_CPU, BF16_CPU))


class OpenVinoVision:
    """One graph on the CPU.

    Args:
        path: the graph, ONNX.
        spec: what the manifest says of it.
        name: for people.
        compute: the class of its products.
        threads: see `thread_budget`.

    Attributes:
        compute_class: the same.
    """

    def __init__(
        self,
        path: Path,
        spec: VisionSpec,
        *,
        name: str,
        compute: ComputeClass = FLOAT32_CPU,
        threads: int | None = None,
    ) -> None:
        self.name = name
        self.compute_class = compute
        self._image_size = spec.image_size
        self._output_shape = (spec.num_tokens, spec.hidden_size)
        model = read_model(path)
        self._check_shapes(path, model)
        self._compiled: Any = compile_model(path, model, compute, threads=threads)
        self._free = freed_with(self, self._compiled)

    def encode(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `VisionBackend`."""
        check_open(self.name, self._compiled is not None)
        check_pixels(self.name, pixels, self._image_size)
        try:
            found = self._compiled.request.infer({PIXELS: np.ascontiguousarray(pixels)})
        except Exception as error:  # RuntimeError, of C++ exceptions that share no base class
            raise BackendError(f"{self.name}: OpenVINO failed ({said(error)}).") from None
        embeddings: npt.NDArray[np.float32] = found[EMBEDDINGS]  # a copy
        check_embeddings(self.name, embeddings, (len(pixels), *self._output_shape))
        return embeddings

    def close(self) -> None:
        """See `VisionBackend`."""
        self._compiled = None
        self._free()

    def _check_shapes(self, path: Path, model: Any) -> None:
        pixels, embeddings = [3, self._image_size, self._image_size], list(self._output_shape)
        wanted = [{PIXELS: (_FLOAT32, pixels)}, {EMBEDDINGS: (_FLOAT32, embeddings)}]
        found = [_ends(model.inputs), _ends(model.outputs)]
        if found != wanted:
            raise BundleError(f"{path}: expected {wanted}, found {found}. Export the bundle again.")


def _tap(
    compute: ComputeClass, path: Path, name: str, threads: int | None
) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """See `base.GraphTap`."""
    compiled = compile_model(path, read_model(path), compute, threads=threads)

    def run(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(compiled.request.infer({PIXELS: pixels})[name], dtype=np.float32)

    return run


open_tap, open_tap_bf16 = (partial(_tap, compute) for compute in (FLOAT32_CPU, BF16_CPU))


def _ends(ports: Sequence[Any]) -> dict[str, tuple[str, list[Any]]]:
    """Type and shape behind the batch of each input or output; -1 where it is dynamic."""
    return {
        port.any_name: (
            port.element_type.get_type_name(),
            [-1 if size.is_dynamic else size.get_length() for size in list(port.partial_shape)[1:]],
        )
        for port in ports
    }
