"""A SentencePiece vocabulary made for the texts of one data set."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

_ROLES = {"<unk>": 0, "<s>": 1, "</s>": 2}
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def write_tokenizer(texts: Iterable[str], directory: Path, *, vocab_size: int, max_length: int) -> None:
    """Train a Llama tokenizer (BPE, byte fallback) and write its three files.

    Texts that a model reads all the time, such as the system prompt, should be as frequent in `texts`: their
    words become single tokens, and prompts short.

    Args:
        texts: what the model will read and write, without special tokens; one item a stretch between them.
        directory: receives `tokenizer.model`, `tokenizer_config.json` and `special_tokens_map.json`.
        vocab_size: number of tokens, with 3 special and 256 byte tokens among them.
        max_length: longest sequence, as upstream's `model_max_length`.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n") if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars=_PRINTABLE,
        unk_id=_ROLES["<unk>"],
        bos_id=_ROLES["<s>"],
        eos_id=_ROLES["</s>"],
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,  # the same vocabulary on every machine
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    write_json(directory / "tokenizer_config.json", _settings(max_length))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    write_json(directory / "special_tokens_map.json", roles)


def _settings(max_length: int) -> dict[str, Any]:
    """`tokenizer_config.json` as TinyLlama's, which upstream loads with `use_fast=False`."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(id_): {"content": text, **flags} for text, id_ in _ROLES.items()},
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": max_length,
        "pad_token": "<unk>",
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }


def write_json(path: Path, value: object) -> None:
    """Write one of a checkpoint's JSON files."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
