"""Outliers of activations shifted into the weights that read them: SmoothQuant, arXiv 2211.10438.

A column j of a product's input is divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), and the weights'
column multiplied by it. The division is folded into what writes the input: a norm's weight, value rows (heads
that share them share s), up rows. In float32 the model says the same as before.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Largest = dict[str, torch.Tensor]  # name of a linear layer -> [columns in], of the magnitudes it has read
_TINY = 1e-5


@contextmanager
def watched_inputs(language: nn.Module) -> Iterator[Largest]:
    """Collects the largest magnitude of every column that the linear layers read meanwhile."""
    largest: Largest = {}

    def watch(name: str) -> Any:
        def see(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            columns = inputs[0].detach().abs().flatten(0, -2).amax(dim=0)
            largest[name] = torch.maximum(largest.get(name, columns), columns)

        return see

    layers = [(name, layer) for name, layer in language.named_modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def smooth(language: Any, largest: Largest, alpha: float) -> None:
    """Shift outliers of a Llama or Qwen2 into its weights, in place.

    Args:
        language: transformers' causal model.
        largest: of `watched_inputs`, on text that is not judged.
        alpha: 0 leaves all in the activations' way, 1 all in the weights'.
    """
    for number, layer in enumerate(language.model.layers):
        name, attention, mlp = f"model.layers.{number}", layer.self_attn, layer.mlp
        shared = attention.o_proj.in_features // attention.v_proj.out_features
        for writer, readers, seen, times in (
            (attention.v_proj, [attention.o_proj], f"{name}.self_attn.o_proj", shared),
            (mlp.up_proj, [mlp.down_proj], f"{name}.mlp.down_proj", 1),
            (layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj],
             f"{name}.self_attn.q_proj", 1),
            (layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], f"{name}.mlp.gate_proj", 1),
        ):  # fmt: skip
            _shift(writer, readers, largest[seen], alpha, times, attention.head_dim)


def _shift(
    writer: nn.Module, readers: Iterable[nn.Linear], seen: torch.Tensor, alpha: float, times: int, head: int
) -> None:
    """Divide what `writer` writes; `times` heads behind each other read the same of its heads."""
    weights = torch.stack([reader.weight.abs().amax(dim=0) for reader in readers]).amax(dim=0)
    if times > 1:
        seen, weights = (each.view(-1, times, head).amax(dim=1).flatten() for each in (seen, weights))
    scales = (seen.clamp(min=_TINY) ** alpha / weights.clamp(min=_TINY) ** (1 - alpha)).clamp(min=_TINY)
    for parameter in writer.parameters():
        parameter.div_(scales.view(-1, *[1] * (parameter.dim() - 1)))
    columns = scales.view(-1, 1, head).expand(-1, times, head).flatten() if times > 1 else scales
    for reader in readers:
        reader.weight.mul_(columns)
