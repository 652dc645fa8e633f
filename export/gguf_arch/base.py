"""What a family's module says about its GGUF file."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch

from tinyllava_edge.checkpoint.config import LanguageConfig

SLICE_VALUES = 1 << 22


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@dataclass(frozen=True, kw_only=True)
class TensorRule:
    """Where one tensor of the checkpoint goes.

    `restore` undoes `convert`; it reads the written file back, so write it as its own code, not as a second
    call of the first.

    Attributes:
        name: in the GGUF file.
        shape: in the checkpoint, outermost dimension first.
        convert: from the checkpoint's layout to the file's; keeps the shape.
        restore: back again.
        tolerance: largest absolute error that converting and restoring makes by rounding; 0 where both only
            move values.
    """

    name: str
    shape: tuple[int, ...]
    convert: Callable[[torch.Tensor], torch.Tensor] = _unchanged
    restore: Callable[[torch.Tensor], torch.Tensor] = _unchanged
    tolerance: float = 0.0

    def slices(self) -> Iterator[slice]:
        """Rows that can be converted and restored at once: few, or all where the conversion moves rows."""
        rows = self.shape[0]
        if self.convert is _unchanged:
            rows = max(1, SLICE_VALUES // prod(self.shape[1:]))
        for start in range(0, self.shape[0], rows):
            yield slice(start, start + rows)


def _whole(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor)]


def _none(_: LanguageConfig) -> dict[str, list[float]]:
    return {}


@dataclass(frozen=True, kw_only=True)
class GgufArchitecture:
    """How a family's config and tensors become those of llama.cpp.

    Attributes:
        metadata: hyperparameters by key, without the architecture's name in front. An int is written as
            uint32, a float as float32, a list of ints as an array with one value for each layer.
        tensors: name in the checkpoint (behind `language_model.`) -> rule, for every tensor that there must
            be, in the order of the file.
        split: one tensor of the checkpoint -> the named tensors that `tensors` knows, where the checkpoint
            fuses what the file keeps apart.
        computed: vectors of the file that the config gives and no tensor of the checkpoint.
    """

    metadata: Callable[[LanguageConfig], Mapping[str, int | float | str | list[int]]]
    tensors: Callable[[LanguageConfig], Mapping[str, TensorRule]]
    split: Callable[[str, torch.Tensor], list[tuple[str, torch.Tensor]]] = _whole
    computed: Callable[[LanguageConfig], Mapping[str, list[float]]] = _none
