"""A GGUF file of a bundle against the manifest, before llama.cpp sees it: only what `export` writes passes.

llama.cpp has loaders of more than a hundred architectures and obeys keys that nobody asked for, and some
values end the process. So a file is refused for an architecture, a key, a type, a number, a token or a tensor
that `export` does not write for the manifest's family.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shown
from typing import Any, NoReturn

from tinyllava_edge.checkpoint.families import FAMILIES, Family
from tinyllava_edge.errors import BundleError
from tinyllava_edge.gguf_header import GgufHeader, read_gguf_header, refuse
from tinyllava_edge.manifest import LanguageSpec
from tinyllava_edge.precisions import LANGUAGE_TYPES, matrix_types
from tinyllava_edge.tokenizer_splits import PRE_TOKENIZERS

GGUF_RULES = 1  # one more with each change of what passes: files that were read by other rules are read again
MAX_LAYERS = 512
MAX_CONTEXT = 1 << 24
_ROPE_SCALING = {"rope.scaling.type": "string", "rope.scaling.factor": "float32"}
_HEAD_SIZES = ("attention.key_length", "attention.value_length")
_LAYER = re.compile(r"blk\.\d+\.")

_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_SCORES, _MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.merges"
_IDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "unknown", "padding"))
# llama is SentencePiece, gpt2 byte-level BPE -> the array that it alone has, names of how it splits text, and
# types of its tokens (llama.h, enum llama_token_type): at a byte of gpt2 llama.cpp ends the process.
_TOKENIZERS = {
    "llama": (_SCORES, ("default",), range(1, 7)),
    "gpt2": (_MERGES, tuple(PRE_TOKENIZERS.values()), range(1, 6)),
}
_BYTE, _BYTE_TOKEN = 6, re.compile(rb"<0x[0-9A-Fa-f]{2}>")
# Types of the keys beside the architecture's own; the first four must be there.
_KEYS = {
    "general.architecture": "string",
    "tokenizer.ggml.model": "string",
    _TOKENS: "array of string",
    _TYPES: "array of int32",
    _SCORES: "array of float32",
    _MERGES: "array of string",
    **dict.fromkeys(
        ("general.type", "general.name", "tokenizer.ggml.pre", "tokenizer.chat_template"), "string"
    ),
    **dict.fromkeys(("general.file_type", "general.quantization_version", *_IDS), "uint32"),
    **dict.fromkeys(("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"), "bool"),
}


def check_gguf(path: Path, variant: str, spec: LanguageSpec) -> None:
    """Refuse a file that `export` would not write for a variant of this model.

    Args:
        path: the file; its weights are not read.
        variant: the name of its type, one of `precisions.LANGUAGE_TYPES`.
        spec: what the manifest says of the language model.

    Raises:
        BundleError: names the file, what is in it and what was expected.
    """
    family = FAMILIES.get(spec.architecture)
    if family is None or variant not in LANGUAGE_TYPES:
        raise BundleError(
            f"{path}: the manifest's family is {shown(spec.architecture)}, the variant {shown(variant)}; "
            f"expected one of {', '.join(FAMILIES)} and {', '.join(LANGUAGE_TYPES)}. Export the bundle again."
        )
    check = _Check(path, family, spec, read_gguf_header(path))
    check.check_keys()
    check.check_numbers()
    check.check_tokenizer()
    check.check_tensors(matrix_types(variant))


class _Check:
    def __init__(self, path: Path, family: Family, spec: LanguageSpec, header: GgufHeader) -> None:
        self._path, self._family, self._spec = path, family, spec
        self._entries, self._tensors = header

    def check_keys(self) -> None:
        """The architecture is the family's; every key is one that export writes, and none is missing."""
        architecture = self._entries.get("general.architecture")
        expected = ("string", self._family.llamacpp)
        if architecture != expected:
            self._refuse(
                f"the architecture is {shown(tuple(architecture or ()))}", f"{expected}, {self._says}"
            )
        counted = "array of int32" if self._family.layers_differ else "uint32"
        by_layer = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")
        own = {
            **dict.fromkeys(("vocab_size", "context_length", "embedding_length", "block_count"), "uint32"),
            **dict.fromkeys(by_layer, counted),
            **dict.fromkeys(("rope.freq_base", self._family.epsilon_key), "float32"),
            **dict.fromkeys(("rope.dimension_count", *_HEAD_SIZES), "uint32"),
            **self._family.keys,
        }
        kinds = {**_KEYS, **{self._key(name): kind for name, kind in own.items()}}
        if "linear" in self._family.rope_kinds:
            kinds |= {self._key(name): kind for name, kind in _ROPE_SCALING.items()}
        for key, (kind, _) in self._entries.items():
            if kinds.get(key) != kind:
                self._refuse(
                    f"the key {shown(key)} of type {kind}", kinds.get(key, "only keys that export writes")
                )
        needed = {*list(_KEYS)[:4], *map(self._key, own)}
        if self._spec.head_dim * self._spec.num_attention_heads == self._spec.hidden_size:
            needed -= {*map(self._key, _HEAD_SIZES)}
        if missing := sorted(needed - self._entries.keys()):
            self._refuse(f"no key {missing[0]}", "one")

    def check_numbers(self) -> None:
        """Numbers are the manifest's; those that it does not state are within range."""
        spec = self._spec
        exact = {
            "vocab_size": spec.vocab_size,
            "embedding_length": spec.hidden_size,
            "block_count": spec.num_hidden_layers,
            **{name: spec.head_dim for name in _HEAD_SIZES if self._key(name) in self._entries},
        }
        for name, expected in exact.items():
            self._require(name, self._own(name) == expected, f"{expected}, {self._says}")
        self._require("block_count", spec.num_hidden_layers <= MAX_LAYERS, f"at most {MAX_LAYERS}")
        for name, most in (
            ("attention.head_count", spec.num_attention_heads),
            ("attention.head_count_kv", spec.num_key_value_heads),
        ):
            self._require(name, max(self._by_layer(name)) == most, f"{most}, {self._says}")
        pairs = zip(*map(self._by_layer, ("attention.head_count", "attention.head_count_kv")), strict=True)
        fits = all(keys > 0 and heads > 0 and heads % keys == 0 for heads, keys in pairs)
        self._require("attention.head_count_kv", fits, "a divisor of attention.head_count")
        is_enough = spec.context_length <= self._own("context_length") <= MAX_CONTEXT
        self._require("context_length", is_enough, f"{spec.context_length}, {self._says}, to {MAX_CONTEXT}")
        turned = self._own("rope.dimension_count")
        is_even = 0 < turned <= spec.head_dim and turned % 2 == 0
        self._require("rope.dimension_count", is_even, f"an even number up to a head's {spec.head_dim}")
        stretched = [name for name in _ROPE_SCALING if self._key(name) in self._entries]
        if stretched:
            linear = len(stretched) == 2 and self._own("rope.scaling.type") == "linear"
            self._require("rope.scaling.type", linear, "linear, with rope.scaling.factor")
        for name in ("rope.freq_base", self._family.epsilon_key, *self._family.keys, *stretched[1:]):
            self._require(name, 0 < self._own(name) < math.inf, "a finite number above 0")

    def check_tokenizer(self) -> None:
        """One of those that export writes, with as many tokens as the embedding has rows."""
        vocab, model = self._spec.vocab_size, self._value("tokenizer.ggml.model")
        if model not in _TOKENIZERS:
            self._refuse(f"tokenizer.ggml.model is {shown(model)}", " or ".join(_TOKENIZERS))
        own_array, splits, types = _TOKENIZERS[model]
        if (pre := self._value("tokenizer.ggml.pre", splits[0])) not in splits:
            self._refuse(f"tokenizer.ggml.pre is {shown(pre)}", " or ".join(splits))
        if [key for key in (_SCORES, _MERGES) if key in self._entries] != [own_array]:
            self._refuse(f"a tokenizer {model} without {own_array}, or with more", "it alone")
        for key in (_TOKENS, _TYPES, *({_SCORES} & {own_array})):
            if len(self._value(key)) != vocab:
                self._refuse(f"{key} has {len(self._value(key))} entries", f"{vocab}, {self._says}")
        for key in _IDS:
            if self._value(key, 0) >= vocab:
                self._refuse(f"{key} is {self._value(key)}", f"an id below {vocab}")
        self._check_tokens(types)
        self._check_merges()

    def _check_tokens(self, types: range) -> None:
        """No token is there twice: llama.cpp ends the process at one."""
        tokens, kinds = self._value(_TOKENS), self._value(_TYPES)
        self._check_texts(_TOKENS, tokens)
        if len(set(tokens)) != len(tokens):
            self._refuse(f"{_TOKENS} has {len(tokens) - len(set(tokens))} of its tokens twice", "each once")
        if strange := set(kinds) - set(types):
            self._refuse(f"{_TYPES} has the type {min(strange)}", f"{types[0]} to {types[-1]}")
        for token, kind in zip(tokens, kinds, strict=True):
            if kind == _BYTE and not _BYTE_TOKEN.fullmatch(token):
                self._refuse(f"{_TOKENS} has the byte {shown(token)}", "<0x00> to <0xFF>")
        if not math.isfinite(sum(self._value(_SCORES, ()))):
            self._refuse(f"{_SCORES} has values that are NaN or infinite", "finite ones")

    def _check_merges(self) -> None:
        merges = self._value(_MERGES, ())
        self._check_texts(_MERGES, merges)
        for merge in merges:
            if merge.find(b" ", 1, -1) < 0:
                self._refuse(f"{_MERGES} has {shown(merge)}", "two tokens and a space between them")

    def check_tensors(self, matrix_types: set[str]) -> None:
        """The tensors are the family's, in the shapes that the numbers give, of types of the variant."""
        expected = self._shapes()
        if missing := [name for name in expected if name not in self._tensors]:
            self._refuse(f"{len(missing)} tensors are missing, the first is {missing[0]}", "them")
        for name, (shape, kind) in self._tensors.items():
            if name not in expected:
                self._refuse(f"the tensor {shown(name)}", f"only those of {self._spec.architecture}")
            if shape != expected[name]:
                self._refuse(f"tensor {name} is {list(shape)}", f"{list(expected[name])}")
            allowed = matrix_types if len(shape) > 1 else {"F32"}
            if kind not in allowed:
                self._refuse(
                    f"tensor {name} is {kind}", f"{', '.join(sorted(allowed))} in a file of its type"
                )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that there must be."""
        tensors = dict(self._family.tensors)
        found = {_LAYER.sub("blk.", name) for name in self._tensors}
        for group in self._family.more_tensors:
            if found & group.keys():
                tensors |= group
        spec = self._spec
        names = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
        sizes = []
        for heads, kv_heads, inner in zip(*map(self._by_layer, names), strict=True):
            queries, keys = heads * spec.head_dim, kv_heads * spec.head_dim
            of_layer = {"queries": queries, "keys": keys, "fused": queries + 2 * keys, "inner": inner}
            of_layer["both"] = 2 * inner
            of_model = {"vocab": spec.vocab_size, "hidden": spec.hidden_size, "head": spec.head_dim}
            of_model["pairs"] = spec.head_dim // 2
            sizes.append({**of_layer, **of_model})
        return {
            name.replace("blk.", f"blk.{layer}."): tuple(sizes[layer][size] for size in dimensions.split())
            for name, dimensions in tensors.items()
            for layer in (range(spec.num_hidden_layers) if name.startswith("blk.") else [0])
        }

    def _check_texts(self, key: str, texts: Sequence[bytes]) -> None:
        """None is empty or would end early in C, and all are UTF-8."""
        if not all(texts) or any(b"\0" in text for text in texts):
            self._refuse(f"{key} has an empty string, or one with a zero byte", "neither")
        try:
            b"\0".join(texts).decode()
        except UnicodeDecodeError as error:
            self._refuse(f"{key} has {shown(error.object[error.start : error.end])}", "UTF-8")

    @property
    def _says(self) -> str:
        return f"as the manifest says of {self._spec.architecture}"

    def _key(self, name: str) -> str:
        return f"{self._family.llamacpp}.{name}"

    def _value(self, key: str, default: Any = None) -> Any:
        return self._entries[key].value if key in self._entries else default

    def _own(self, name: str) -> Any:
        return self._value(self._key(name))

    def _by_layer(self, name: str) -> tuple[int, ...]:
        """A number of each layer."""
        layers, value = self._spec.num_hidden_layers, self._own(name)
        if not self._family.layers_differ:
            return (value,) * layers
        if len(value) != layers:
            self._refuse(f"{self._key(name)} has {len(value)} entries", f"{layers}, one for each layer")
        return tuple(value)

    def _require(self, name: str, is_right: bool, expected: str) -> None:
        if not is_right:
            self._refuse(f"{self._key(name)} is {shown(self._own(name))}", expected)

    def _refuse(self, found: str, expected: str) -> NoReturn:
        refuse(self._path, found, expected)
