"""A model that is larger than the memory: the language model's weights stay in the checkpoint's files.

Each module gets its weights for the time of its forward pass, widened to float32 and with a LoRA update
merged, in one buffer that all modules use in turn. What a module computes with is what `load_model` would
have given it, bit for bit, at the same alignment. The vision tower and the connector have theirs in a file
of float32 that the system maps: an ONNX graph is made of them, which needs them all at once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch import nn

from tinyllava_edge.atomic_files import reserve
from tinyllava_edge.checkpoint.opened import Checkpoint

from .checkpoint import iter_readers
from .tensor_files import TensorReader
from .vlm import TinyLlava, canonical_parameters, checked_tensors

ALIGNMENT = 16  # float32 values: 64 bytes, as torch aligns a tensor of its own
LANGUAGE = "language_model."
OnTensor = Callable[[str, torch.Tensor], object]
OnBytes = Callable[[int], object]


def stream_model(
    checkpoint: Checkpoint,
    scratch: Path,
    *,
    on_tensor: OnTensor = lambda name, tensor: None,
    on_bytes: OnBytes = lambda count: None,
) -> TinyLlava:
    """A checkpoint's model, in float32 for whoever calls it, whose weights take no memory of their own.

    Args:
        checkpoint: whose model.
        scratch: a directory on a disk, with room for tower and connector in float32; nothing is left there.
        on_tensor: called with each tensor as it is stored, while all are checked once.
        on_bytes: called with the size of each weight that the language model reads for a forward pass.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape or not finite; the message names it.
    """
    tensors = checked_tensors(checkpoint)
    with _parameters_on_meta():
        model = TinyLlava(checkpoint.config).float().eval()
    parameters = dict(canonical_parameters(model))
    places = _places(model, parameters)
    shapes = {name: value.shape for name, value in parameters.items() if not name.startswith(LANGUAGE)}
    mapped = _mapped_file(scratch, shapes)
    for name, tensor in tensors:
        on_tensor(name, tensor)
        if name in mapped:
            mapped[name].copy_(tensor)
            for module, key in places[name]:
                module._parameters[key] = nn.Parameter(mapped[name], requires_grad=False)
    readers = dict(iter_readers(checkpoint, part="language_model"))
    _Lender(readers, on_bytes).attach({name: places[name] for name in parameters if name not in mapped})
    return model


class _Lender:
    """Gives modules their weights for the time of their forward pass."""

    def __init__(self, readers: Mapping[str, TensorReader], on_bytes: OnBytes) -> None:
        self._readers = readers
        self._on_bytes = on_bytes
        self._buffer = torch.empty(0)

    def attach(self, places: Mapping[str, list[tuple[nn.Module, str]]]) -> None:
        """Serve every module that owns one of the parameters."""
        names: dict[nn.Module, dict[str, str]] = defaultdict(dict)
        for name, owners in places.items():
            for module, key in owners:
                names[module][key] = name
        sizes = [0, 0]
        for module, own in names.items():
            nothing: dict[str, Any] = dict(module._parameters)  # on the meta device
            if isinstance(module, nn.Embedding):
                (name,) = own.values()
                module.register_forward_pre_hook(partial(self._lend_rows, name))
            else:
                sizes.append(sum(_aligned(nothing[key].numel()) for key in own))
                module.register_forward_pre_hook(partial(self._lend, own))
            module.register_forward_hook(partial(_take_back, nothing), always_call=True)
        # Not for the largest, the head: a cache of keys and values is at its side, which is large too.
        self._buffer = torch.empty(sorted(sizes)[-2])

    def _lend(self, names: Mapping[str, str], module: nn.Module, arguments: Any) -> None:
        weights = {key: self._readers[name]() for key, name in names.items()}
        size = sum(_aligned(weight.numel()) for weight in weights.values())
        buffer = self._buffer if size <= len(self._buffer) else torch.empty(size)
        for key, view in _views(buffer, {key: weight.shape for key, weight in weights.items()}).items():
            module._parameters[key] = nn.Parameter(view.copy_(weights[key]), requires_grad=False)
            self._on_bytes(weights[key].nbytes)

    def _lend_rows(self, name: str, module: nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        """Only the rows that are looked up."""
        ids, places = torch.unique(arguments[0], return_inverse=True)
        rows = self._readers[name]()[ids].float()
        module._parameters["weight"] = nn.Parameter(rows, requires_grad=False)
        return (places,)


def _take_back(nothing: dict[str, Any], module: nn.Module, arguments: Any, output: Any) -> None:
    module._parameters.update(nothing)


def _places(
    model: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> dict[str, list[tuple[nn.Module, str]]]:
    """Where each parameter is: module and attribute, two of them where the head is tied."""
    owners = defaultdict(list)
    for module in model.modules():
        for key, parameter in module._parameters.items():
            owners[id(parameter)].append((module, key))
    return {name: owners[id(parameter)] for name, parameter in parameters.items()}


def _mapped_file(scratch: Path, shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Float32 tensors in a file whose name is gone already; it goes with the last of them."""
    size = sum(_aligned(prod(shape)) for shape in shapes.values())
    with NamedTemporaryFile(dir=scratch) as file:
        reserve(Path(file.name), 4 * size)
        return _views(torch.from_file(file.name, shared=True, size=size), shapes)


def _views(buffer: torch.Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    views = {}
    start = 0
    for name, shape in shapes.items():
        views[name] = buffer[start : start + prod(shape)].view(shape)
        start += _aligned(prod(shape))
    return views


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Build modules whose parameters have only a shape. Buffers are real: RoPE's angles are in no file."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # one that is stays itself: a tied head
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
