"""Files that the tests of the language model's export read and change."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tinyllava_edge.checkpoint.read_config import read_model_config
from tinyllava_edge.export.language_gguf import LanguageSource
from tinyllava_edge.model.assets import read_assets


def language_source(checkpoint: Path, *, sources: Path | None = None) -> LanguageSource:
    """What the exporter knows of a checkpoint's language model."""
    config = read_model_config(checkpoint, sources=sources)
    assets = read_assets(checkpoint, config, sources=sources)
    return LanguageSource(checkpoint=checkpoint, config=config, assets=assets, name="tiny", allow_pickle=True)


def change_weights(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change a checkpoint's tensors in place."""
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
