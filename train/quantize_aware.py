"""Fake quantization through torchao: layers compute with their weights as `export` will write them.

torchao has the layers; the grids are ours. Its own symmetric ones divide the largest magnitude by half the
range (7.5, 127.5): no setting gives Q4_0, whose scale has a sign, or int8 of 127 steps a side (torchao 0.18,
quantization/quant_primitives.py, choose_qparams_affine).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torchao.quantization.qat import FakeQuantizedEmbedding, FakeQuantizedLinear, FakeQuantizerBase

from tinyllava_edge.errors import UsageError
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.model.weight_grids import GRIDS, Q4_0_BLOCK, round_weights

from .training_options import Grid


class _OnGrid(torch.autograd.Function):
    """A grid's values forward, the gradient straight through (Bengio et al., arXiv 1308.3432)."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, round_to: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """`weight` on the grid, in its own dtype."""
        return round_to(weight).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient as it comes."""
        return gradients[0], None


class GridFakeQuantizer(FakeQuantizerBase):  # type: ignore[misc]
    """torchao's fake quantizer for one of our grids; `config` is its name."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.config, self.enabled = grid, True

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """[rows, columns] on the grid."""
        return _OnGrid.apply(weight, GRIDS[self.config][0]) if self.enabled else weight  # type: ignore[no-untyped-call]


def prepare(model: TinyLlava, grids: Sequence[Grid]) -> None:
    """Have the layers of a model that a grid is for compute with their weights on it.

    What is trained is rounded in every forward pass, under the names that its weights have; what is frozen is
    rounded here, once.

    Raises:
        UsageError: a layer's rows are no multiple of Q4_0's block, or it is of a kind that has no fake one.
    """
    for grid in grids:
        layers = GRIDS[grid][1](model)
        for name, layer in layers.items():
            width = layer.weight.shape[1]
            if grid == "q4_0" and width % Q4_0_BLOCK:
                raise UsageError(
                    f"--quantize-aware q4_0: rows of {name} are {width} wide, expected a multiple of "
                    f"{Q4_0_BLOCK}, as llama.cpp's blocks are. Export this model as f16 or q8_0."
                )
            if layer.weight.requires_grad and not (
                isinstance(layer, nn.Linear) or type(layer) is nn.Embedding
            ):
                raise UsageError(
                    f"--quantize-aware {grid}: {name} is a {type(layer).__name__}, whose forward does more "
                    "than look rows up. Leave the part frozen, or train it without --quantize-aware."
                )
        frozen = [layer for layer in layers.values() if not layer.weight.requires_grad]
        round_weights(frozen, grid)
        for name, layer in layers.items():
            if layer.weight.requires_grad:
                model.set_submodule(name, _faked(layer, grid))


def _faked(layer: Any, grid: Grid) -> nn.Module:
    """A layer of torchao's around the very weights of ours; from_linear would draw new ones first."""
    if isinstance(layer, nn.Linear):
        has_bias = layer.bias is not None
        made = FakeQuantizedLinear(layer.in_features, layer.out_features, has_bias, device="meta")
        made.bias = layer.bias
    else:
        made = FakeQuantizedEmbedding(*layer.weight.shape, padding_idx=layer.padding_idx, device="meta")
    made.weight = layer.weight
    made.weight_fake_quantizer = GridFakeQuantizer(grid)
    return made  # type: ignore[no-any-return]
