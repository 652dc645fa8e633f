"""Qwen2 and Qwen2.5: Llama's layer with biases on q, k and v, and rotate-half RoPE.

Names and keys: llama.cpp, src/models/qwen2.cpp (LLM_ARCH_QWEN2).
"""

from functools import partial

from .base import GgufArchitecture
from .decoder import standard_metadata, standard_tensors

ARCHITECTURE = GgufArchitecture(metadata=standard_metadata, tensors=partial(standard_tensors, bias="qkv"))
