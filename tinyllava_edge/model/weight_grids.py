"""The grids that `export` writes weights on, as torch computes them, and which layers are on them.

A grid's function takes float weights to their nearest values on it. What it gives is a fixed point: `export`
writes such weights without a loss.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .vlm import TinyLlava

Q4_0_BLOCK = 32


def round_to_q4_0(weight: torch.Tensor) -> torch.Tensor:
    """Weights [rows, n * 32] to llama.cpp's Q4_0 and back, in float32, bit for bit.

    Each 32 of a row share a float16 scale: an eighth of the one that is largest in magnitude, with its sign
    turned, so that this one is step -8 of -8 to 7. A compiler that rounds product and sum once (FMA: on
    aarch64) gives a weight half way between two steps the other one now and then, but none that is on the
    grid.

    Source: ggml, src/ggml-quants.c (quantize_row_q4_0_ref, dequantize_row_q4_0); gguf, quants.py (Q4_0).
    """
    blocks = weight.float().reshape(-1, Q4_0_BLOCK)
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))  # the first of several
    scale = largest / -8
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    steps = (blocks * inverse + 8.5).trunc().clamp(0, 15) - 8
    stored = scale.half().float()
    return torch.where(stored == 0, 0.0, steps * stored).reshape(weight.shape)


def int8_steps(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [outputs, inputs] as steps of -127 to 127, in float32, and each output's scale [outputs, 1].

    Outputs whose scale would be subnormal, of weights below 1.5e-36, are zeros.
    """
    weight = weight.float()
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    scales = torch.where(scales >= torch.finfo(torch.float32).tiny, scales, 1.0)
    return (weight / scales).round().clamp(-127, 127), scales


def round_to_int8(weight: torch.Tensor) -> torch.Tensor:
    """Weights [outputs, inputs] to int8 and back, in float32, bit for bit as the vision graph has them."""
    steps, scales = int8_steps(weight)
    return steps * scales


def q4_0_layers(model: TinyLlava) -> dict[str, Any]:
    """What llama.cpp's quantizer writes as Q4_0: matrices of the language model but the head's, tied or not.

    The head is Q6_K there, or Q8_0 where its rows are no multiple of 256.
    """
    language: Any = model.language_model
    get_head = getattr(language, "get_output_embeddings", lambda: language.lm_head)
    head = get_head().weight
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith("language_model.")
        and isinstance(module, nn.Linear | nn.Embedding)
        and module.weight is not head
    }


def int8_layers(model: TinyLlava) -> dict[str, Any]:
    """Linear layers of tower and connector, of which the vision graph has those that the features need."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith(("vision_tower.", "connector")) and type(module) is nn.Linear
    }


# Name of a grid -> its function, and the layers that it is for.
GRIDS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[TinyLlava], dict[str, Any]]]] = {
    "q4_0": (round_to_q4_0, q4_0_layers),
    "int8": (round_to_int8, int8_layers),
}


@torch.no_grad()
def round_weights(layers: Iterable[Any], grid: str) -> None:
    """Round the weights of layers to a grid, in their place."""
    for layer in layers:
        layer.weight.copy_(GRIDS[grid][0](layer.weight))
