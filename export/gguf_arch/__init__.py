"""How each family of language models lies in a GGUF file: one module per family. docs/add_a_family.md."""

from tinyllava_edge.errors import UnsupportedModelError

from . import gemma, llama, openelm, phi2, qwen2, stablelm
from .base import GgufArchitecture, TensorRule

__all__ = ["ARCHITECTURES", "GgufArchitecture", "TensorRule", "architecture_for"]

# `model_type` of the checkpoint's text_config -> the family's module.
ARCHITECTURES: dict[str, GgufArchitecture] = {
    "llama": llama.ARCHITECTURE,
    "qwen2": qwen2.ARCHITECTURE,
    "gemma": gemma.ARCHITECTURE,
    "phi": phi2.ARCHITECTURE,
    "stablelm": stablelm.ARCHITECTURE,
    "openelm": openelm.ARCHITECTURE,
}


def architecture_for(model_type: str) -> GgufArchitecture:
    """Look a family up by its exact `model_type`.

    Raises:
        UnsupportedModelError: there is none; the message lists those there are.
    """
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"language model {model_type!r} has no GGUF converter. Supported: {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[model_type]
