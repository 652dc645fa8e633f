"""How text is split before byte-level BPE: the ways there are, one entry each, read by everything.

The exporter finds llama.cpp's name here, the check of `tokenizer.json` the regular expressions that it lets
through, the check of a GGUF file the names. docs/add_a_family.md.
"""

from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = _WORDS + r"\p{N}" + _REST
LLAMA3_SPLIT = _WORDS + r"\p{N}{1,3}" + _REST

# Steps of tokenizer.json's pre-tokenizer, each with the option that tells it -> llama.cpp's name for it.
PRE_TOKENIZERS: dict[tuple[Any, ...], str] = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", LLAMA3_SPLIT), ("ByteLevel", False), "ignore_merges"): "llama-bpe",
    (("Split", QWEN2_SPLIT), ("ByteLevel", False)): "qwen2",
}
SPLITS = tuple(step[1] for steps in PRE_TOKENIZERS for step in steps if step[0] == "Split")
