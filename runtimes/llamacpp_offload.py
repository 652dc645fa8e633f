"""Where llama.cpp keeps a model: as many layers on the GPU as were asked for, else as fit.

Layers count as llama.cpp counts them: the output is one more than the model's own. A model whose weights, KV
cache or working memory do not fit has fewer layers on the GPU, then none; why is kept, to be said. Not yet
run on hardware (docs/sources/tensorrt.md#llamacpp-where-a-gpu-is-full-or-not-seen).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinyllava_edge.device import has_nvidia_gpu
from tinyllava_edge.errors import BackendError, UsageError
from tinyllava_edge.install import llamacpp_line

from .base import BackendOptions
from .llamacpp_library import Library

_NONE, _ONE_GPU = -1, 0  # main_gpu for no device at all; llama_split_mode
_NO_MEMORY = re.compile("alloc|out of memory")


class NoMemoryError(BackendError):
    """llama.cpp could not have the memory that it asked for."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a model came to be.

    Attributes:
        layers: on the GPU.
        total: there are.
        why: it is not what would be best; "" where it is, or was asked for.
    """

    layers: int
    total: int
    why: str = ""

    @property
    def label(self) -> str:
        """For the backend's name."""
        if self.layers in (0, self.total):
            return "GPU" if self.layers else "without the GPU"
        return f"{self.layers} of {self.total} layers on the GPU"


def place(
    library: Library, options: BackendOptions, num_layers: int, open_with: Callable[[int], None]
) -> Placement:
    """Open a model where the options say, and where they do not, with the most layers on the GPU that fit.

    Args:
        library: which sees the GPUs.
        options: `gpu_layers` and `main_gpu`.
        num_layers: of the model, the output not counted.
        open_with: opens with so many layers on the GPU, in the place of what it opened before.

    Raises:
        BackendError: it does not open; a NoMemoryError where layers were asked for by number that do not fit.
        UsageError: a GPU was asked for, and this llama.cpp has none or not that one.
    """
    total = num_layers + 1
    _check(library, options)
    if not library.gpus:
        open_with(0)
        return Placement(layers=0, total=total, why=library.blind)
    if options.gpu_layers is not None:
        layers = min(options.gpu_layers, total)
        open_with(layers)
        return Placement(layers=layers, total=total)
    try:
        open_with(total)
    except NoMemoryError as error:
        return Placement(layers=_open_most(total, open_with), total=total, why=_retreat(error))
    return Placement(layers=total, total=total)


def set_devices(parameters: Any, library: Library, options: BackendOptions, layers: int) -> None:
    """Tell `llama_model_params` where the model is to be."""
    parameters.n_gpu_layers = layers
    if layers == 0 or not library.gpus:
        parameters.split_mode, parameters.main_gpu = (
            _ONE_GPU,
            _NONE,
        )  # the GPU does not compute a part, either
    elif options.main_gpu is not None:
        parameters.split_mode, parameters.main_gpu = _ONE_GPU, options.main_gpu


def refusal(message: str, said: str, advice: str = "") -> BackendError:
    """An error of llama.cpp's, by what it said; the advice is for one that is about memory."""
    if not _NO_MEMORY.search(said):
        return BackendError(f"{message}{said}")
    return NoMemoryError(f"{message}{said.rstrip('.')}.{advice and f' {advice}'}")


def _check(library: Library, options: BackendOptions) -> None:
    asked = {"--gpu-layers": options.gpu_layers or None, "--main-gpu": options.main_gpu}
    given = [f"{name} {value}" for name, value in asked.items() if value is not None]
    if given and not library.gpus:
        mend = (
            f"One for the GPU here: {llamacpp_line()}"
            if has_nvidia_gpu()
            else "Leave it out: no GPU is here."
        )
        why = library.blind or f"llama.cpp is a CPU build. {mend}"
        raise UsageError(f"{given[0]}: there is no GPU for it. {why}")
    if options.main_gpu is not None and options.main_gpu >= len(library.gpus):
        found = ", ".join(f"{number} ({name})" for number, name in enumerate(library.gpus))
        raise UsageError(f"--main-gpu {options.main_gpu}: llama.cpp sees {found}.")


def _open_most(total: int, open_with: Callable[[int], None]) -> int:
    """Open with the most layers that fit, fewer than all; how many those are."""
    fits, too_many, opened = 0, total, -1
    while too_many - fits > 1:
        layers = (fits + too_many) // 2
        try:
            open_with(layers)
            fits = opened = layers
        except NoMemoryError:
            too_many, opened = layers, -1
    if opened != fits:
        open_with(fits)
    return fits


def _retreat(error: NoMemoryError) -> str:
    return f"not all layers fit on the GPU ({error})"
