"""How each family of language models lies in a GGUF file: one module per family. docs/add_a_family.md."""

from . import gemma, llama, openelm, phi2, qwen2, qwen3, stablelm
from .base import GgufArchitecture, TensorRule

__all__ = ["ARCHITECTURES", "GgufArchitecture", "TensorRule"]

# `model_type` of the checkpoint's text_config -> the family's module.
ARCHITECTURES: dict[str, GgufArchitecture] = {
    "llama": llama.ARCHITECTURE,
    "qwen2": qwen2.ARCHITECTURE,
    "qwen3": qwen3.ARCHITECTURE,
    "gemma": gemma.ARCHITECTURE,
    "phi": phi2.ARCHITECTURE,
    "stablelm": stablelm.ARCHITECTURE,
    "openelm": openelm.ARCHITECTURE,
}
