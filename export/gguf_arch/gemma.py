"""Gemma: RMS norms stored as weight - 1, a tied head, and embeddings scaled inside the graph.

Names and keys: llama.cpp, src/models/gemma.cpp (LLM_ARCH_GEMMA). Its graph scales every row that comes in by
sqrt(hidden), injected picture rows too, as upstream does.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from tinyllava_edge.checkpoint.config import LanguageConfig
from tinyllava_edge.errors import UnsupportedModelError

from .base import GgufArchitecture, TensorRule
from .decoder import standard_metadata, standard_tensors


def _metadata(config: LanguageConfig) -> dict[str, int | float | str]:
    activation = config.values["hidden_activation"]
    if activation not in (None, "gelu_pytorch_tanh"):
        raise UnsupportedModelError(
            f"text_config.hidden_activation is {activation!r}; llama.cpp's gemma graph computes only "
            "gelu_pytorch_tanh."
        )
    return {
        **standard_metadata(config),
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }


def plus_one_norms(rules: Mapping[str, TensorRule]) -> Mapping[str, TensorRule]:
    """Rules whose norms have weight + 1 in the file; `rules` but for that."""
    return {
        name: replace(rule, convert=_plus_one, restore=_minus_one, tolerance=4e-6)  # of 1 + weight, up to 64
        if name.endswith("norm.weight")
        else rule
        for name, rule in rules.items()
    }


def _tensors(config: LanguageConfig) -> Mapping[str, TensorRule]:
    return plus_one_norms(standard_tensors(config))


def _plus_one(weight: torch.Tensor) -> torch.Tensor:
    return weight + 1


def _minus_one(weight: torch.Tensor) -> torch.Tensor:
    return weight - 1


ARCHITECTURE = GgufArchitecture(metadata=_metadata, tensors=_tensors)
