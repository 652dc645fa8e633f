"""StableLM-2: Llama's layer with layer norms, biases on q, k and v, and RoPE on a part of each head.

Names and keys: llama.cpp, src/models/stablelm.cpp (LLM_ARCH_STABLELM).
"""

from collections.abc import Mapping

from tinyllava_edge.checkpoint.config import LanguageConfig

from .base import GgufArchitecture, TensorRule
from .decoder import standard_metadata, standard_tensors


def _tensors(config: LanguageConfig) -> Mapping[str, TensorRule]:
    return standard_tensors(config, bias="qkv" if config.values["use_qkv_bias"] else "", norm_bias=True)


ARCHITECTURE = GgufArchitecture(metadata=standard_metadata, tensors=_tensors)
