"""One step of a training on tensors that have a shape and no memory: what it would hold, and its FLOPs.

The step is the run's own, forward, loss and backward, of the model with the parts that are trained; torch's
FakeTensorMode computes shapes instead of values, and each storage that an operation makes is followed until
it is let go. What a kernel takes inside itself is not seen.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID, ModelConfig
from tinyllava_edge.model.vlm import TinyLlava

from .model import TinyLlavaForTraining

_aten: Any = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class FakeStep:
    """What one batch takes.

    Attributes:
        activations: bytes after each operation of all that is no gradient of a weight: [operations].
        gradients: bytes of the weights' gradients that are there, likewise.
        flops: of forward and backward, 2 for a multiplication and its addition.
    """

    activations: NDArray[np.int64]
    gradients: NDArray[np.int64]
    flops: int


def build_fake(
    config: ModelConfig,
    change: Callable[[TinyLlava], None],
    teach: Callable[[TinyLlava], None] | None = None,
) -> TinyLlavaForTraining:
    """A model without memory, in a fake mode of its own that `take_step` finds again.

    Args:
        config: of the checkpoint.
        change: what the run does to its model before the first step: what is trained, and in what.
        teach: what it does to a teacher, where it has one.
    """
    models = []
    for prepare in filter(None, (change, teach)):
        with torch.device("meta"):
            models.append(TinyLlava(config))
            prepare(models[-1])
    with FakeTensorMode(allow_non_fake_inputs=True):
        made: dict[int, torch.Tensor] = {}
        for module in chain.from_iterable(model.modules() for model in models):
            for store in (module._parameters, module._buffers):
                for name, value in store.items():
                    if value is not None:
                        if id(value) not in made:
                            made[id(value)] = _like(value)
                        store[name] = made[id(value)]  # type: ignore[assignment]
    return TinyLlavaForTraining(*models)


def take_step(
    model: TinyLlavaForTraining,
    *,
    batch: int,
    positions: int,
    precision: torch.dtype | None,
    image_size: int | None = None,
    backward: bool = True,
) -> FakeStep:
    """Forward and backward of a batch: one picture a conversation, the rest of its positions text.

    Args:
        model: of `build_fake`, in training mode.
        batch: conversations.
        positions: of each, its picture's among them. All text but the first is learned.
        precision: that is computed in; None is float32.
        image_size: of the picture; None is the tower's own.
        backward: also go back.
    """
    first: Any = next(model.parameters())
    with first.fake_mode:
        inputs = _inputs(model.model.config, batch, positions, image_size)
        model.zero_grad(set_to_none=True)
        held = [*tree_leaves(inputs)]
        for module in (model, *model.teachers):
            held += [*module.parameters(), *module.buffers()]
        with _Follow(held) as follow:
            with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
                loss = model(**inputs)["loss"]
            if backward:
                loss.backward()
            del loss
        gradients = {follow.key(p.grad) for p in model.parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
    step: FakeStep = follow.result(gradients)
    return step


def _inputs(config: ModelConfig, batch: int, positions: int, image_size: int | None) -> dict[str, Any]:
    side = image_size or config.vision.image_size
    rows = config.num_picture_tokens(side)
    inputs = _spliced(batch, positions, rows) | {"pixel_values": torch.zeros(batch, 3, side, side)}
    if further := config.connector.budgets[1:]:
        inputs["budgets"] = [_spliced(batch, positions - rows + fewer, fewer) for fewer in further]
    return inputs


def _spliced(batch: int, positions: int, rows: int) -> dict[str, Any]:
    ids = torch.zeros(batch, positions, dtype=torch.long)
    ids[:, :rows] = IMAGE_TOKEN_ID
    learned = max(positions - rows - 1, 1)
    return {
        "input_ids": ids,
        "labels": torch.zeros(batch, positions, dtype=torch.long),
        "learned": torch.zeros(batch * learned, dtype=torch.long),
        "picture_rows": torch.zeros(batch * rows, dtype=torch.long),
    }


def _like(value: torch.Tensor) -> torch.Tensor:
    made = torch.empty(value.shape, dtype=value.dtype, device="cpu")
    return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    shapes = (each.shape for each in (gradient, query, key, value))
    return int(sdpa_backward_flop_count(*shapes))  # type: ignore[no-untyped-call]


# What torch's own table lacks.
_FLOPS: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


class _Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down which storages are made and let go, and counts FLOPs."""

    def __init__(self, held: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = weakref.WeakKeyDictionary({tensor.untyped_storage(): -1 for tensor in held})
        self._events: list[tuple[int, int, int]] = []  # operation, storage, bytes that come or go
        self._operations = self._storages = self._flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._operations += 1
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.untyped_storage() not in self._known:
                storage = value.untyped_storage()
                self._known[storage] = self._storages
                self._event(self._storages, storage.nbytes())
                weakref.finalize(storage, self._event, self._storages, -storage.nbytes())
                self._storages += 1
        packet = func._overloadpacket
        if packet in _FLOPS:
            self._flops += _FLOPS[packet](*args, **(kwargs or {}))
        elif packet in flop_registry:
            self._flops += int(flop_registry[packet](*args, **(kwargs or {}), out_val=result))
        return result

    def _event(self, storage: int, size: int) -> None:
        self._events.append((self._operations, storage, size))

    def key(self, tensor: torch.Tensor) -> int:
        """Which storage a tensor is in."""
        return self._known[tensor.untyped_storage()]

    def result(self, gradients: set[int]) -> FakeStep:
        """The bytes after each operation, apart for these storages."""
        curves = np.zeros((2, self._operations + 1), np.int64)
        for operation, storage, size in self._events:
            if operation <= self._operations:
                curves[int(storage in gradients), operation] += size
        activations, kept = np.cumsum(curves, axis=1)
        return FakeStep(activations=activations, gradients=kept, flops=self._flops)
