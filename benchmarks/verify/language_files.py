"""The two kinds of files that hold a language model, GGUF and OpenVINO's IR, read in one way.

An IR has the checkpoint's tensors under the checkpoint's names, in its order of rows.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinyllava_edge import ir_tensors
from tinyllava_edge.verified_rule import RoundTo

Floats = npt.NDArray[np.float32]
_TABLES = ("token_embd.weight", "model.embed_tokens.weight", "transformer.token_embeddings.weight")


def is_ir(path: Path) -> bool:
    """Whether a language variant's file is an IR, and not a GGUF."""
    return path.suffix == ".xml"


def read_tensors(path: Path) -> Iterator[tuple[str, str, Floats]]:
    """Name, type and dequantized values (outermost dimension first) of every tensor."""
    if is_ir(path):
        return ir_tensors.read_tensors(path)
    from . import gguf_files

    return gguf_files.read_tensors(path)


def rounder(path: Path) -> RoundTo:
    """What makes values those of a type, in a file of this kind."""
    if is_ir(path):
        return ir_tensors.rounded
    from . import gguf_files

    return gguf_files.rounded


def read_embeddings(path: Path) -> tuple[str, Floats]:
    """Type and values [vocab, hidden] of the token embedding."""
    return next((kind, values) for name, kind, values in read_tensors(path) if name in _TABLES)
