"""Qwen3: Llama's layer with RMS norms of each head's queries and keys, no biases, and rotate-half RoPE.

Names and keys: llama.cpp, src/models/qwen3.cpp (LLM_ARCH_QWEN3). A head's size is the config's own, not
hidden / heads.
"""

from functools import partial

from .base import GgufArchitecture
from .decoder import standard_metadata, standard_tensors

ARCHITECTURE = GgufArchitecture(metadata=standard_metadata, tensors=partial(standard_tensors, qk_norm=True))
