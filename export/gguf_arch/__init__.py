"""How each family of language models lies in a GGUF file: one module per family. docs/add_a_family.md."""

from . import gemma, gemma2, llama, openelm, phi2, phi3, qwen2, qwen3, smollm3, stablelm
from .base import GgufArchitecture, TensorRule

__all__ = ["ARCHITECTURES", "GgufArchitecture", "TensorRule"]

# `model_type` of the checkpoint's text_config -> the family's module.
ARCHITECTURES: dict[str, GgufArchitecture] = {
    "llama": llama.ARCHITECTURE,
    "qwen2": qwen2.ARCHITECTURE,
    "qwen3": qwen3.ARCHITECTURE,
    "gemma": gemma.ARCHITECTURE,
    "gemma2": gemma2.ARCHITECTURE,
    "smollm3": smollm3.ARCHITECTURE,
    "phi3": phi3.ARCHITECTURE,
    "phi": phi2.ARCHITECTURE,
    "stablelm": stablelm.ARCHITECTURE,
    "openelm": openelm.ARCHITECTURE,
}
