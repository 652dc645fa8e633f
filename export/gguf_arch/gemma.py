"""Gemma: RMS norms stored as weight - 1, a tied head, and embeddings scaled inside the graph.

Names and keys: llama.cpp, src/models/gemma.cpp (LLM_ARCH_GEMMA). Its graph scales every row that comes in by
sqrt(hidden), injected picture rows too, as upstream does.
"""

from tinyllava_edge.checkpoint.config import LanguageConfig
from tinyllava_edge.errors import UnsupportedModelError

from .base import GgufArchitecture
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


ARCHITECTURE = GgufArchitecture(metadata=_metadata, tensors=standard_tensors)
