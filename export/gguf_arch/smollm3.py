"""SmolLM3: Llama's layer and order of rows, without RoPE in every fourth layer.

Names and keys: llama.cpp, src/models/smollm3.cpp (LLM_ARCH_SMOLLM3). Which layers have no RoPE is no key of
the file but a constant there (docs/sources/language_models.md#smollm3).
"""

from .base import GgufArchitecture
from .decoder import standard_metadata
from .llama import interleaved_tensors

ARCHITECTURE = GgufArchitecture(metadata=standard_metadata, tensors=interleaved_tensors)
