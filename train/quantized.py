"""Frozen linear layers in 4 bits (nf4, double quantization) for QLoRA (Dettmers et al., arXiv 2305.14314).

Upstream's QLoRA is 8 bits, and its weights cannot be had back (docs/sources/tinyllava.md#lora-directory).
Here the finished model holds the 4-bit values that its updates were trained against: merging changes nothing.
"""

import torch
from torch import nn

from .lora import updated_layers

_KIND = "nf4"


def quantize(model: nn.Module, compute: torch.dtype) -> None:
    """Put linear layers in 4 bits in the place of a model's own; biases stay.

    Args:
        model: in float32.
        compute: dtype that the layers compute in.
    """
    from bitsandbytes.nn import Linear4bit

    for name, layer in updated_layers(model).items():
        made = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=compute,
            compress_statistics=True,
            quant_type=_KIND,
        )
        made.load_state_dict(layer.state_dict())
        made.requires_grad_(False)
        model.set_submodule(name, made.to(layer.weight.device))  # which quantizes


@torch.no_grad()
def round_to_4_bits(model: nn.Module) -> None:
    """Give the same layers the values that they have in 4 bits, as ordinary weights."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for layer in updated_layers(model).values():
        packed, state = quantize_4bit(layer.weight.data, compress_statistics=True, quant_type=_KIND)
        layer.weight.copy_(dequantize_4bit(packed, state))
