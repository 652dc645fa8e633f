"""The one door to a `tokenizer.json`: read in Python first, and every call of the library behind it guarded.

The tokenizers library panics on some contents and runs whatever regular expression a file has, for ever if
need be. So it sees only what the exporter writes for the known families (docs/bundle.md#tokenizerjson).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from tokenizers import Tokenizer

from tinyllava_edge.checkpoint.files import once_each
from tinyllava_edge.errors import BundleError, TinyLlavaEdgeError, guarded
from tinyllava_edge.tokenizer_splits import SPLITS
from tinyllava_edge.user_files import read_user_text

MAX_TOKENIZER_BYTES = 64 << 20  # Gemma's has 17 MB, or 33 where its merges are pairs
MAX_ID = 1 << 24
RULES = 1  # counted up with each change of what is let through
_MAX_STEPS = 16
_MAX_TEXT = 16  # characters of what a step replaces, or puts in its place

Check = Callable[[Any], bool]
Steps = Mapping[str, Mapping[str, Check]]


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _is_some_text(value: Any) -> bool:
    return _is_text(value) and value != ""


def _is_character(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 1


def _is_few(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_STEPS


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_ID


def _one_of(*allowed: Any) -> Check:
    return lambda value: any(type(value) is type(other) and value == other for other in allowed)


def _is_text_pattern(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["String"] and _is_some_text(value["String"])


def _is_split_pattern(value: Any) -> bool:
    return value in [{"Regex": regex} for regex in SPLITS] or _is_text_pattern(value)


def _is_template(value: Any) -> bool:
    """`[{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]`."""
    if not isinstance(value, list) or len(value) > _MAX_STEPS:
        return False
    kinds = [kind for piece in value if isinstance(piece, dict) and len(piece) == 1 for kind in piece]
    return len(kinds) == len(value) and set(kinds) <= {"SpecialToken", "Sequence"}


def _is_template_tokens(value: Any) -> bool:
    return (
        isinstance(value, dict) and len(value) <= _MAX_STEPS and all(map(_is_template_token, value.values()))
    )


def _is_template_token(value: Any) -> bool:
    ids = value.get("ids") if isinstance(value, dict) else None
    return isinstance(ids, list) and len(ids) <= _MAX_STEPS and all(map(_is_id, ids))


# Step -> its options, and what each may be. `Sequence` holds a list of steps.
_BYTE_LEVEL = {"add_prefix_space": _is_flag, "trim_offsets": _is_flag, "use_regex": _is_flag}
_REPLACE = {"pattern": _is_text_pattern, "content": _is_text}
_STEPS: dict[str, Steps] = {
    "normalizer": {"NFC": {}, "Replace": _REPLACE, "Prepend": {"prepend": _is_some_text}},
    "pre_tokenizer": {
        "ByteLevel": _BYTE_LEVEL,
        "Digits": {"individual_digits": _is_flag},
        "Metaspace": {
            "replacement": _is_character,
            "prepend_scheme": _one_of("always", "first", "never"),
            "split": _is_flag,
        },
        "Split": {
            "pattern": _is_split_pattern,
            "behavior": _one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"),
            "invert": _is_flag,
        },
    },
    "post_processor": {
        "ByteLevel": _BYTE_LEVEL,
        "TemplateProcessing": {
            "single": _is_template,
            "pair": _is_template,
            "special_tokens": _is_template_tokens,
        },
    },
    "decoder": {
        "ByteLevel": _BYTE_LEVEL,
        "ByteFallback": {},
        "Fuse": {},
        "Replace": _REPLACE,
        "Strip": {"content": _is_character, "start": _is_few, "stop": _is_few},
    },
}
_LISTS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
_MODEL: dict[str, Check] = {
    "dropout": lambda value: value is None or (type(value) in (int, float) and 0 <= value <= 1),
    "unk_token": lambda value: value is None or isinstance(value, str),
    "continuing_subword_prefix": _one_of(None, ""),
    "end_of_word_suffix": _one_of(None, ""),
    "fuse_unk": _is_flag,
    "byte_fallback": _is_flag,
    "ignore_merges": _is_flag,
    "vocab": lambda value: isinstance(value, dict) and value != {},
    "merges": lambda value: isinstance(value, list),
}
_ADDED: dict[str, Check] = {
    "id": _is_id,
    "content": lambda value: isinstance(value, str) and value != "",
    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), _is_flag),
}
_TOP = {"version", "truncation", "padding", "added_tokens", "model", *_STEPS}


def check_tokenizer(path: Path, vocab_size: int) -> None:
    """Open a bundle's tokenizer once, before anything relies on it; every id is a row of the model.

    Raises:
        BundleError: it is damaged, or has what no exporter writes; the message says what.
    """
    open_tokenizer(read_tokenizer_json(path, BundleError), path, BundleError, vocab_size)


def read_tokenizer_json(path: Path, error: type[TinyLlavaEdgeError]) -> str:
    """The text of a tokenizer.json that is no larger than `MAX_TOKENIZER_BYTES`."""
    return read_user_text(path, most=MAX_TOKENIZER_BYTES, error=error)


def open_tokenizer(
    tokenizer_json: str,
    where: object,
    error: type[TinyLlavaEdgeError],
    vocab_size: int | None = None,
    *,
    checked: bool = False,
) -> Tokenizer:
    """The tokenizer that upstream has of a `tokenizer.json`: a text's ids are all of its own ids, each time.

    The file's truncation and padding are the tokenizers library's, transformers ignores both; dropout of
    merges is for training.

    Args:
        tokenizer_json: the text of the file.
        where: the file, for messages.
        error: the type of what is raised.
        vocab_size: rows of the model, where they are known.
        checked: it came through this door before, as a bundle's has when the bundle is open.
    """
    with guarded(where, error):
        added = [] if checked else _checked_tokens(_parse(tokenizer_json), vocab_size)
        tokenizer = Tokenizer.from_str(tokenizer_json)
        for token in added:  # the library counts ids anew, whatever the file says
            if (found := tokenizer.token_to_id(token["content"])) != token["id"]:
                raise ValueError(
                    f"added token {shown(token['content'])} has id {token['id']}, comes to {found}"
                )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None) is not None:
            tokenizer.model.dropout = None
        return tokenizer


def _parse(text: str) -> Any:
    if len(text) > MAX_TOKENIZER_BYTES:
        raise ValueError(f"larger than {MAX_TOKENIZER_BYTES} bytes")
    return json.loads(text, object_pairs_hook=once_each, parse_constant=_no_number)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _checked_tokens(data: Any, vocab_size: int | None) -> list[dict[str, Any]]:
    """The added tokens of a file of which everything was checked."""
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise ValueError("no object with a model")
    if unknown := data.keys() - _TOP:
        raise ValueError(f"{min(unknown)!r} is not known")
    for name, steps in _STEPS.items():
        if data.get(name) is not None:
            _check_step(data[name], name, steps, _LISTS[name])
    model, added = data["model"], data.get("added_tokens", [])
    if model.get("type") != "BPE":
        raise ValueError(f"model.type is {shown(model.get('type'))}, supported: BPE")
    _check_options(model, "model", {"type": _one_of("BPE"), **_MODEL})
    if not isinstance(added, list):
        raise ValueError("added_tokens is no list")
    for token in added:
        _check_options(token, "added_tokens", _ADDED, all_of=("id", "content"))
    ids = check_vocabulary(model.get("vocab", {}), added)
    check_merges(model.get("merges", []), model["vocab"])
    if model.get("unk_token") is not None and model["unk_token"] not in model["vocab"]:
        raise ValueError(f"model.unk_token {shown(model['unk_token'])} is not in the vocabulary")
    if vocab_size is not None and max(ids) >= vocab_size:
        raise ValueError(f"token id {max(ids)} is no row of a vocabulary of {vocab_size}")
    return list(added)


def _check_step(step: Any, where: str, steps: Steps, list_name: str, depth: int = 0) -> None:
    kind = step.get("type") if isinstance(step, dict) else None
    if kind == "Sequence" and depth < 2:
        inner = step.get(list_name)
        if set(step) != {"type", list_name} or not isinstance(inner, list) or len(inner) > _MAX_STEPS:
            raise ValueError(f"{where}: a Sequence has {list_name}, at most {_MAX_STEPS}, and nothing else")
        for one in inner:
            _check_step(one, where, steps, list_name, depth + 1)
    elif not isinstance(kind, str) or kind not in steps:
        raise ValueError(f"{where} {shown(kind)} is not supported, supported: {', '.join(steps)}, Sequence")
    else:
        _check_options(step, f"{where} {kind}", {"type": _one_of(kind), **steps[kind]})


def _check_options(
    values: Any, where: str, checks: Mapping[str, Check], all_of: tuple[str, ...] = ()
) -> None:
    if not isinstance(values, dict) or not set(all_of) <= set(values):
        raise ValueError(f"{where}: {shown(values)} is not what is written there")
    for name, value in values.items():
        if name not in checks or not checks[name](value):
            raise ValueError(f"{where}: {shown(name)}: {shown(value)} is not supported")


def check_vocabulary(vocab: Mapping[str, Any], added: list[dict[str, Any]]) -> set[int]:
    """The ids of a vocabulary and of the tokens added to it.

    Raises:
        ValueError: a value is no id, or two tokens have the same one, or one token two.
    """
    for text, index in vocab.items():
        if type(index) is not int or not 0 <= index < MAX_ID:
            raise ValueError(f"token {shown(text)} has id {shown(index)}")
    texts = {index: text for text, index in vocab.items()}
    if len(texts) != len(vocab):
        first, second = next((t, texts[i]) for t, i in vocab.items() if texts[i] != t)
        raise ValueError(f"tokens {shown(first)} and {shown(second)} both have id {vocab[first]}")
    for token in added:
        text, index = token["content"], token["id"]
        if texts.setdefault(index, text) != text:
            raise ValueError(f"tokens {shown(texts[index])} and {shown(text)} both have id {index}")
        if vocab.get(text, index) != index:
            raise ValueError(f"token {shown(text)} has ids {vocab[text]} and {index}")
    return set(texts)


def check_merges(merges: list[Any], vocab: Mapping[str, Any]) -> None:
    """Two pieces of the vocabulary that make a third, each time.

    Raises:
        ValueError: names the merge that is none.
    """
    for merge in merges:
        try:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            missing = [piece for piece in (left, right, left + right) if piece not in vocab]
        except (TypeError, ValueError):
            raise ValueError(f"{shown(merge)} is not a merge of two pieces") from None
        if missing:
            raise ValueError(
                f"merge {shown(merge)} needs {shown(missing[0])}, which is not in the vocabulary"
            )
