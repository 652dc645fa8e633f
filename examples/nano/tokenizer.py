"""A SentencePiece vocabulary made for the texts of one data set."""

import io
import shutil
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from tinyllava_edge.checkpoint.names import NANO, checkpoint_path

_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def write_tokenizer(texts: Iterable[str], directory: Path, *, vocab_size: int) -> None:
    """Train a Llama tokenizer (BPE, byte fallback) and write its three files.

    Texts that a model reads all the time, such as the system prompt, should be as frequent in `texts`: their
    words become single tokens, and prompts short.

    Args:
        texts: what the model will read and write, without special tokens; one item a stretch between them.
        directory: receives `tokenizer.model`, and the settings of the nano that is shipped.
        vocab_size: number of tokens, with 3 special and 256 byte tokens among them.
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
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,  # the same vocabulary on every machine
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    # As TinyLlama's, which upstream loads with `use_fast=False`.
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(checkpoint_path(NANO) / name, directory / name)
