"""Whether a GGUF is the model that the manifest says: a mismatched pair would read the wrong memory."""

import ctypes
from pathlib import Path
from typing import Any

from tinyllava_edge.bundle import LanguageSpec
from tinyllava_edge.checkpoint.families import FAMILIES
from tinyllava_edge.errors import BundleError

_NAME_BYTES = 128


def check_facts(library: Any, model: Any, spec: LanguageSpec, path: Path) -> None:
    """Compare a loaded model with the manifest.

    Args:
        library: the bindings of llama.cpp.
        model: what `llama_model_load_from_file` gave.
        spec: what the manifest says of it.
        path: of the file, for the message.

    Raises:
        BundleError: names every fact that differs, expected and found, or a family we cannot compare.
    """
    family = FAMILIES.get(spec.architecture)
    if family is None:
        raise BundleError(
            f"{path}: the manifest's family is {spec.architecture!r}; llamacpp runs {', '.join(FAMILIES)}."
        )
    architecture = ctypes.create_string_buffer(_NAME_BYTES)
    library.llama_model_meta_val_str(model, b"general.architecture", architecture, _NAME_BYTES)
    vocab = library.llama_model_get_vocab(model)
    pairs: dict[str, tuple[str | int, str | int]] = {
        "architecture": (family.llamacpp, architecture.value.decode(errors="replace")),
        "tokens": (spec.vocab_size, library.llama_vocab_n_tokens(vocab)),
        "width": (spec.hidden_size, library.llama_model_n_embd(model)),
        "layers": (spec.num_hidden_layers, library.llama_model_n_layer(model)),
    }
    if not family.layers_differ:  # llama.cpp tells the heads of the first layer
        pairs["heads"] = (spec.num_attention_heads, library.llama_model_n_head(model))
        pairs["key-value heads"] = (spec.num_key_value_heads, library.llama_model_n_head_kv(model))
    wrong = [
        f"{name} {found}, not {expected}" for name, (expected, found) in pairs.items() if found != expected
    ]
    positions = library.llama_model_n_ctx_train(model)
    if positions < spec.context_length:
        wrong.append(f"positions {positions}, not {spec.context_length} or more")
    if wrong:
        raise BundleError(
            f"{path} is not what the manifest says: {'; '.join(wrong)}. Export the bundle again."
        )
