"""A checkpoint's tokenizer -> the vocabulary of a GGUF file.

Our own runtimes tokenise with `tokenizer.json`; the vocabulary is here so that llama.cpp's programs can use
the file on its own. Keys and token types: llama.cpp, gguf-py/gguf/constants.py and src/llama-vocab.cpp. Known
difference: after a special token llama.cpp's SentencePiece puts a space mark, upstream's tokenizer does not.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

from gguf import GGUFWriter, TokenType

from tinyllava_edge.errors import ExportError
from tinyllava_edge.model.tokenizer import TokenizerAssets
from tinyllava_edge.model.tokenizer_sentencepiece import read_sentencepiece
from tinyllava_edge.tokenizer_splits import PRE_TOKENIZERS


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens of a GGUF file, one for each row of the embedding."""

    model: str  # tokenizer.ggml.model: "llama" is SentencePiece, "gpt2" byte-level BPE
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float] | None = None  # SentencePiece
    merges: list[str] | None = None  # byte-level BPE


def build_vocabulary(tokenizer: TokenizerAssets, vocab_size: int) -> Vocabulary:
    """Build the vocabulary; rows past the tokenizer's last token become unused tokens.

    Raises:
        ExportError: the tokenizer is of a kind that llama.cpp does not have, has more tokens than the model
            has rows, or has a token twice.
    """
    data = json.loads(tokenizer.tokenizer_json)
    model = data["model"]
    if model.get("type") != "BPE":
        raise ExportError(f"the tokenizer's model is {model.get('type')!r}; only BPE can be written to GGUF.")
    if model.get("byte_fallback"):
        vocabulary = _sentencepiece(tokenizer, data)
    else:
        vocabulary = Vocabulary(
            model="gpt2",
            pre=_pre_tokenizer(data),
            tokens=_texts(data),
            types=_types(data),
            merges=[" ".join(pair) for pair in model["merges"]],
        )
    return _padded(vocabulary, vocab_size)


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, tokenizer: TokenizerAssets) -> None:
    """Add the vocabulary and the special ids to a file's metadata."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_id),
        (writer.add_eos_token_id, tokenizer.eos_id),
        (writer.add_unk_token_id, tokenizer.unk_id),
        (writer.add_pad_token_id, tokenizer.pad_id),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(False)


def _texts(data: dict[str, Any]) -> list[str]:
    """Token texts by id, from the model's vocabulary and the added tokens."""
    by_id = {index: text for text, index in data["model"]["vocab"].items()}
    by_id |= {token["id"]: token["content"] for token in data["added_tokens"]}
    if sorted(by_id) != list(range(len(by_id))):
        raise ExportError(f"the tokenizer's ids are not 0 to {len(by_id) - 1} without a gap.")
    return [by_id[index] for index in range(len(by_id))]


def _types(data: dict[str, Any]) -> list[TokenType]:
    types = [TokenType.NORMAL] * len(_texts(data))
    for token in data["added_tokens"]:
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    return types


def _sentencepiece(tokenizer: TokenizerAssets, data: dict[str, Any]) -> Vocabulary:
    tokens, types = _texts(data), _types(data)
    for index, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[index] = TokenType.BYTE
    if tokenizer.unk_id is not None:
        types[tokenizer.unk_id] = TokenType.UNKNOWN
    if tokenizer.sentencepiece_model is None:
        scores = _scores_from_merges(tokens, data["model"]["merges"])
    else:
        scores = [piece.score for piece in read_sentencepiece(tokenizer.sentencepiece_model).pieces]
        scores += [0.0] * (len(tokens) - len(scores))
    return Vocabulary(model="llama", pre="default", tokens=tokens, types=types, scores=scores)


def _scores_from_merges(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Scores of the same order as the merges: llama.cpp joins the pair whose piece scores best first."""
    best: dict[str, float] = {}
    for rank, (left, right) in enumerate(merges):
        best.setdefault(left + right, -float(rank))
    lowest = -float(len(merges))
    return [best.get(token, lowest) for token in tokens]


def _pre_tokenizer(data: dict[str, Any]) -> str:
    """llama.cpp's name of how text is split before BPE."""
    step = data.get("pre_tokenizer") or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    key: list[Any] = [_step_key(step) for step in steps]
    if data["model"].get("ignore_merges"):
        key.append("ignore_merges")
    normalizer = (data.get("normalizer") or {"type": "NFC"})["type"]
    if tuple(key) not in PRE_TOKENIZERS or normalizer != "NFC":
        raise ExportError(
            f"tokenizer.json splits text in a way that llama.cpp has no name for here: {key}, normalizer "
            f"{normalizer}. Known: {', '.join(PRE_TOKENIZERS.values())}."
        )
    return PRE_TOKENIZERS[tuple(key)]


def _step_key(step: dict[str, Any]) -> tuple[Any, ...]:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return kind, step.get("use_regex", True)
    if kind == "Digits":
        return kind, step.get("individual_digits", False)
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return kind, step["pattern"].get("Regex")
    return kind, "other settings"


def _padded(vocabulary: Vocabulary, vocab_size: int) -> Vocabulary:
    missing = vocab_size - len(vocabulary.tokens)
    if missing < 0:
        raise ExportError(
            f"the tokenizer has {len(vocabulary.tokens)} tokens, the model only {vocab_size} rows: the last "
            f"tokens, such as {vocabulary.tokens[vocab_size]!r}, have no embedding."
        )
    start = len(vocabulary.tokens)
    tokens = vocabulary.tokens + [f"[PAD{start + index}]" for index in range(missing)]
    if len(set(tokens)) != vocab_size:  # llama.cpp would abort the process
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise ExportError(f"the tokenizer has the token {twice!r} twice.")
    types = vocabulary.types + [TokenType.UNUSED] * missing
    scores = None if vocabulary.scores is None else vocabulary.scores + [-10000.0] * missing
    return replace(vocabulary, tokens=tokens, types=types, scores=scores)
