"""Low-rank updates of the language model through PEFT (Hu et al., arXiv 2106.09685)."""

from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from tinyllava_edge.errors import DataError
from tinyllava_edge.model.vlm import TinyLlava

from .data import Batch
from .loop import splice_batch
from .options import LoraOptions

# Relative, in float32: what adding in another order costs.
_MERGE_TOLERANCE = 1e-5


def add_lora(model: TinyLlava, options: LoraOptions) -> Any:
    """Put an update beside every linear layer of the language model; all other weights are frozen.

    As upstream, layers with `head` in their name have none (docs/sources/tinyllava.md#lora).

    Returns:
        PEFT's wrapper; `model` itself computes with the updates from now on.
    """
    targets = [
        f"language_model.{name}"
        for name, module in model.language_model.named_modules()
        if isinstance(module, nn.Linear) and "head" not in name
    ]
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        bias="none",
    )
    return peft.get_peft_model(model, config)


def save_adapter(adapted: Any, directory: Path) -> None:
    """Write the updates alone, as PEFT and upstream do: adapter_config.json and adapter_model.safetensors."""
    adapted.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink()  # PEFT's form, with nothing filled in


def merge_lora(model: TinyLlava, adapted: Any, probe: Batch) -> float:
    """Add the updates to the weights, and measure that the model computes the same.

    Returns:
        Largest difference of the logits of `probe`, relative to the largest logit.

    Raises:
        DataError: the merged model computes something else.
    """
    model.eval()
    before = _logits(model, probe)
    adapted.merge_and_unload()
    after = _logits(model, probe)
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= _MERGE_TOLERANCE:
        raise DataError(
            f"merging the LoRA update changes the logits by {difference:.1e} of the largest one, expected "
            f"at most {_MERGE_TOLERANCE:.0e}. Lower --learning-rate: the update outgrew its weights."
        )
    return difference


@torch.no_grad()
def _logits(model: TinyLlava, probe: Batch) -> torch.Tensor:
    rows, _ = splice_batch(model, probe)
    logits: torch.Tensor = model.language_model(inputs_embeds=rows).logits
    return logits
