"""A checkpoint's tokenizer files -> one `tokenizer.json` that gives upstream's token ids.

Upstream loads *slow* tokenizers (`use_fast=False`). The converters of transformers give other ids at leading
and double spaces, so the SentencePiece case is built here; its oracle is the golden ids of the slow class.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tinyllava_edge.config import read_json_object
from tinyllava_edge.errors import CheckpointError

SPACE = "\u2581"  # SentencePiece writes a space so


@dataclass(frozen=True, kw_only=True)
class TokenizerAssets:
    """A tokenizer and the ids that have a role; None where the tokenizer has no such token."""

    tokenizer_json: str
    adds_bos: bool
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    pad_id: int | None
    sentencepiece_model: Path | None  # the vocabulary's source, for scores and types


def read_tokenizer(directory: Path) -> TokenizerAssets:
    """Read the tokenizer in a directory: `tokenizer.model` (as upstream does) or else `tokenizer.json`.

    Raises:
        CheckpointError: neither is there, or one is damaged.
    """
    settings = _settings(directory)
    model_file = directory / "tokenizer.model"
    if model_file.exists():
        tokenizer = _from_sentencepiece(model_file, settings)
        adds_bos = bool(settings.get("add_bos_token", True))
    elif (directory / "tokenizer.json").exists():
        try:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{directory / 'tokenizer.json'}: {error}.") from None
        starts = tokenizer.encode("", add_special_tokens=True).ids
        adds_bos = bool(starts)
    else:
        raise CheckpointError(
            f"{directory}: holds neither tokenizer.model nor tokenizer.json. Give --sources DIR "
            "with the files of the language model's repository."
        )
    ids = {role: _role_id(tokenizer, settings, role) for role in ("bos", "eos", "unk", "pad")}
    if adds_bos and ids["bos"] is None:
        raise CheckpointError(f"{directory}: the tokenizer adds a BOS token but names none.")
    return TokenizerAssets(
        tokenizer_json=tokenizer.to_str(),
        adds_bos=adds_bos,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        unk_id=ids["unk"],
        pad_id=ids["pad"],
        sentencepiece_model=model_file if model_file.exists() else None,
    )


def _settings(directory: Path) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / name).exists():
            merged.update(read_json_object(directory / name))
    return merged


def _role_id(tokenizer: Tokenizer, settings: dict[str, Any], role: str) -> int | None:
    token = settings.get(f"{role}_token")
    text = token.get("content") if isinstance(token, dict) else token
    if text is None and role in ("bos", "eos", "unk"):
        text = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}[role]
    found: int | None = None if text is None else tokenizer.token_to_id(text)
    return found


def _from_sentencepiece(path: Path, settings: dict[str, Any]) -> Tokenizer:
    """LlamaTokenizer with `legacy=False`, of a BPE model with byte fallback.

    The text as a whole gets one leading space mark, whatever it starts with; a stretch after a special
    token gets none. `Metaspace` alone would leave the mark out where the text starts with a space.
    """
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.Load(str(path))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a SentencePiece model ({error}).") from None
    count = pieces.GetPieceSize()
    vocabulary = {pieces.IdToPiece(index): index for index in range(count)}
    scores = [pieces.GetScore(index) for index in range(count)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, scores),
            unk_token=pieces.IdToPiece(pieces.unk_id()),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [i for i in range(count) if pieces.IsControl(i) or pieces.IsUnknown(i)]
    tokenizer.add_special_tokens(
        [AddedToken(pieces.IdToPiece(i), normalized=False, special=True) for i in special]
    )
    _add_extra_tokens(tokenizer, settings)
    bos = pieces.IdToPiece(pieces.bos_id())
    if settings.get("add_bos_token", True):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, pieces.bos_id())]
        )
    return tokenizer


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score of the result first."""
    found: list[tuple[float, int, int, str, str]] = []
    for piece, index in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-scores[index], left, right, piece[:cut], piece[cut:]))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_extra_tokens(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Tokens that tokenizer_config.json adds past the model's own vocabulary."""
    extra = settings.get("added_tokens_decoder", {})
    for index, token in sorted((int(i), t) for i, t in extra.items()):
        if tokenizer.token_to_id(token["content"]) is None:
            flags = {
                k: token[k]
                for k in ("single_word", "lstrip", "rstrip", "normalized", "special")
                if k in token
            }
            tokenizer.add_tokens([AddedToken(token["content"], **flags)])
            if tokenizer.token_to_id(token["content"]) != index:
                raise CheckpointError(
                    f"added token {token['content']!r} has id {index} in tokenizer_config.json."
                )
