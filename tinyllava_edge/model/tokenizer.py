"""A checkpoint's tokenizer files -> one `tokenizer.json` that gives upstream's token ids.

Upstream loads *slow* tokenizers (`use_fast=False`); their golden ids are the oracle of what is built here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import lexists  # a link that leads nowhere is not absent, but damaged
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from tinyllava_edge.checkpoint.files import added_tokens, read_json_object
from tinyllava_edge.checkpoint.layouts import TOKENIZER_FILES
from tinyllava_edge.errors import CheckpointError, guarded
from tinyllava_edge.tokenizer_file import open_tokenizer, read_tokenizer_json

from .tokenizer_bytelevel import tokenizer_from_merges
from .tokenizer_sentencepiece import takes_marks_for_spaces, tokenizer_from_sentencepiece

# The files of a tokenizer, the one upstream's slow class would read first.
_SENTENCEPIECE_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_ROLES = ("bos", "eos", "unk", "pad")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


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


def read_tokenizer(
    directory: Path, *, fast: bool = False, extra_tokens: Sequence[str] = ()
) -> TokenizerAssets:
    """Read the tokenizer in a directory, from the first of `TOKENIZER_FILES` that is there.

    Args:
        directory: of its files.
        fast: upstream loads the fast class: `tokenizer.json` comes first.
        extra_tokens: special tokens that upstream's loader puts behind those that are there
            (docs/sources/nanovlm.md#tokenizer).

    Raises:
        CheckpointError: none is there, or one is damaged.
    """
    with guarded(f"{directory}: the tokenizer", CheckpointError):
        return _read_tokenizer(directory, fast, extra_tokens)


def _read_tokenizer(directory: Path, fast: bool, extra_tokens: Sequence[str]) -> TokenizerAssets:
    settings = _settings(directory)
    order = TOKENIZER_FILES[::-1] if fast else TOKENIZER_FILES
    kind = next((name for name in order if (directory / name).exists()), None)
    adds_bos = bool(settings.get("add_bos_token", kind == "tokenizer.model"))
    if kind == "tokenizer.model":
        tokenizer = tokenizer_from_sentencepiece(directory / kind, settings)
    elif kind == "vocab.json":
        tokenizer = tokenizer_from_merges(directory, settings)
    elif kind == "tokenizer.json":
        text = read_tokenizer_json(directory / kind, CheckpointError)
        tokenizer = open_tokenizer(text, directory / kind, CheckpointError)
        adds_bos = bool(tokenizer.encode("", add_special_tokens=True).ids)
    else:
        raise CheckpointError(
            f"{directory}: holds none of {', '.join(TOKENIZER_FILES)}. Give --sources DIR "
            "with the files of the language model's repository."
        )
    takes_marks = kind == "tokenizer.model" and takes_marks_for_spaces(settings)
    _add_extra_tokens(tokenizer, directory, settings, takes_marks=takes_marks)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in extra_tokens])
    roles = {**(_SENTENCEPIECE_ROLES if kind == "tokenizer.model" else {}), **settings}
    ids = {role: _role_id(tokenizer, roles.get(f"{role}_token")) for role in _ROLES}
    if adds_bos and ids["bos"] is None:
        raise CheckpointError(f"{directory}: the tokenizer adds a BOS token but names none.")
    return TokenizerAssets(
        tokenizer_json=tokenizer.to_str(),
        adds_bos=adds_bos,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        unk_id=ids["unk"],
        pad_id=ids["pad"],
        sentencepiece_model=directory / kind if kind == "tokenizer.model" else None,
    )


def _settings(directory: Path) -> dict[str, Any]:
    """What both files say; versions of transformers differ in which of them counts for a role."""
    merged: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if lexists(directory / name):
            for key, value in read_json_object(directory / name).items():
                before = _content(merged.get(key))
                if key.removesuffix("_token") in _ROLES and before not in (None, value, _content(value)):
                    raise CheckpointError(
                        f"{directory / name}: {key} is {_content(value)!r}, tokenizer_config.json says "
                        f"{before!r}. Make them equal."
                    )
                merged[key] = value
    return merged


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _role_id(tokenizer: Tokenizer, token: Any) -> int | None:
    text = _content(token)
    found: int | None = None if text is None else tokenizer.token_to_id(text)
    return found


def _add_extra_tokens(
    tokenizer: Tokenizer, directory: Path, settings: dict[str, Any], *, takes_marks: bool
) -> None:
    """Tokens that tokenizer_config.json or added_tokens.json adds to the model's own vocabulary.

    With `takes_marks` they are found in normalised text, where space marks are spaces.
    """
    extra = added_tokens(directory, settings)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for index, token in sorted(extra.items()):
        if token["content"] not in known:
            flags = {name: token[name] for name in _FLAGS if name in token}
            flags |= {"normalized": True} if takes_marks else {}
            tokenizer.add_tokens([AddedToken(token["content"], **flags)])
        if tokenizer.token_to_id(token["content"]) != index:
            raise CheckpointError(
                f"{directory}: added token {token['content']!r} should have id {index}, but the vocabulary "
                f"gives it {tokenizer.token_to_id(token['content'])}."
            )
    path = directory / "tokenizer_config.json"
    listed = read_json_object(path).get("additional_special_tokens") if lexists(path) else None
    for text in map(_content, listed if isinstance(listed, list) else []):
        if not isinstance(text, str) or tokenizer.token_to_id(text) is None:
            raise CheckpointError(
                f"{path}: additional_special_tokens has {text!r}, which is no token of the vocabulary: "
                "transformers would give it an id that no file says. Remove it, or add it to "
                "added_tokens_decoder with its id."
            )
