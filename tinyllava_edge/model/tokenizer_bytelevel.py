"""A byte-level BPE vocabulary (`vocab.json`, `merges.txt`) -> `tokenizers`: GPT-2, CodeGen, Qwen2.

Sources of the two splits: GPT-2's encoder.py; Qwen2's tokenizer (its repository's PRETOKENIZE_REGEX).
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tinyllava_edge.checkpoint.files import read_json_object
from tinyllava_edge.errors import CheckpointError, UnsupportedModelError, guarded
from tinyllava_edge.tokenizer_file import check_merges, check_vocabulary
from tinyllava_edge.tokenizer_splits import QWEN2_SPLIT
from tinyllava_edge.user_files import MAX_CONFIG_BYTES, read_user_text

GPT2_LIKE = ("GPT2Tokenizer", "GPT2TokenizerFast", "CodeGenTokenizer", "CodeGenTokenizerFast")
QWEN2_LIKE = ("Qwen2Tokenizer", "Qwen2TokenizerFast")


def tokenizer_from_merges(directory: Path, settings: dict[str, Any]) -> Tokenizer:
    """Build the tokenizer of `vocab.json` and `merges.txt`; added tokens are the caller's.

    Raises:
        CheckpointError: a file is missing or damaged.
        UnsupportedModelError: the tokenizer class splits text in a way we do not know.
    """
    vocabulary, merges = read_json_object(directory / "vocab.json"), _read_merges(directory / "merges.txt")
    with guarded(f"{directory}: vocab.json with merges.txt", CheckpointError):
        check_vocabulary(vocabulary, [])
        check_merges(merges, vocabulary)
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    kind = str(settings.get("tokenizer_class", "GPT2Tokenizer"))
    if kind in QWEN2_LIKE:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    elif kind in GPT2_LIKE:
        prefix = bool(settings.get("add_prefix_space", False))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=True)
    else:
        raise UnsupportedModelError(
            f"{directory}: tokenizer_class {kind!r} is not supported for vocab.json and merges.txt. "
            f"Supported: {', '.join((*GPT2_LIKE, *QWEN2_LIKE))}."
        )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = read_user_text(path, most=MAX_CONFIG_BYTES, error=CheckpointError).replace("\r", "\n").split("\n")
    merges = []
    for line in lines:
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not right:
            raise CheckpointError(f"{path}: {json.dumps(line)} is not a merge of two pieces.")
        merges.append((left, right))
    return merges
