"""Files that the tests of the language model's export read and change."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.language_gguf import LanguageSource
from tinyllava_edge.model.assets import read_assets


def language_source(checkpoint: Path, *, sources: Path | None = None) -> LanguageSource:
    """What the exporter knows of a checkpoint's language model."""
    opened = Checkpoint(checkpoint, sources=sources, allow_pickle=True)
    return LanguageSource(checkpoint=opened, assets=read_assets(opened), name="tiny")


def change_weights(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change a checkpoint's tensors in place."""
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
