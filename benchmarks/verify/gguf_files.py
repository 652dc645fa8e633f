"""What lies in a GGUF file, read by the gguf package: the one module here that imports it.

A device needs it only when the checkpoint is there to compare with.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
# general.file_type of each variant (enum llama_ftype in llama.h).
FILE_TYPES = {
    name.lower().removeprefix("all_").removeprefix("mostly_"): int(kind)
    for name, kind in gguf.LlamaFileType.__members__.items()
}


@cache
def tensor_namer(architecture: str, num_layers: int) -> Callable[[str], str]:
    """The gguf package's table of an architecture: transformers' name of a tensor -> the name in the file."""
    key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(key, num_layers)

    def name_of(source: str) -> str:
        stem, _, suffix = source.rpartition(".")
        return f"{names.get_name(stem)}.{suffix}"

    return name_of


def read_tensors(path: Path) -> Iterator[tuple[str, str, Floats]]:
    """Name, type and dequantized values (outermost dimension first) of every tensor."""
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = [int(size) for size in reversed(tensor.shape)]
        yield tensor.name, tensor.tensor_type.name, np.asarray(values, dtype=np.float32).reshape(shape)


def rounded(values: Floats, kind: str) -> Floats:
    """Values to a type and back, by the gguf package's own arithmetic; no K-quant has one."""
    type_ = gguf.GGMLQuantizationType[kind]
    stored = gguf.quants.quantize(np.ascontiguousarray(values), type_)
    return np.asarray(gguf.quants.dequantize(stored, type_), dtype=np.float32)


def read_tensor(path: Path, name: str) -> tuple[str, Floats]:
    """Type and dequantized values of one tensor."""
    return next((kind, values) for found, kind, values in read_tensors(path) if found == name)


def read_facts(path: Path) -> dict[str, Any]:
    """Metadata of a file, with the values that llama.cpp derives where a key is absent (llama-model.cpp).

    Tokens and scores are those that a tokenizer gives; the numbers count the unused ones behind them too.
    """
    facts = {name: entry.contents() for name, entry in gguf.GGUFReader(path).fields.items()}
    name = facts.get("general.architecture")
    tokens = facts.get("tokenizer.ggml.tokens", [])
    heads = facts.get(f"{name}.attention.head_count", 1)
    head_dim = facts.get(f"{name}.embedding_length", 0) // (max(heads) if isinstance(heads, list) else heads)
    derived = {
        f"{name}.vocab_size": len(tokens),
        f"{name}.attention.head_count_kv": heads,
        f"{name}.attention.key_length": head_dim,
        f"{name}.attention.value_length": head_dim,
        f"{name}.rope.freq_base": 10000.0,
        f"{name}.rope.dimension_count": facts.get(f"{name}.attention.key_length", head_dim),
        "number of tokens": len(tokens),
    }
    types = facts.get("tokenizer.ggml.token_type", [])
    derived["number of token types"] = len(types)
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.scores"):
        if key in facts:
            pairs = zip(facts[key], types, strict=False)
            facts[key] = [value for value, kind in pairs if kind != gguf.TokenType.UNUSED]
    return {**derived, **facts}
