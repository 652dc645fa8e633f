"""The JSON files of a checkpoint: read with one clear error each, in TinyLLaVA Factory's words."""

import json
from collections.abc import Mapping
from os.path import lexists  # a link that leads nowhere is not absent, but damaged
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import CheckpointError, MissingExtraError, guarded
from tinyllava_edge.user_files import MAX_CONFIG_BYTES, read_user_file

from .other_layouts import LEGACY_FAMILIES, factory_config, llava_config


def as_factory_config(raw: dict[str, Any], path: Path, sources: Path | None = None) -> dict[str, Any]:
    """What is in a `config.json`, as TinyLLaVA Factory would write it, whatever layout the checkpoint has.

    Raises:
        CheckpointError: the config of a TinyLLaVABench checkpoint's tower is missing or not JSON.
    """
    if is_legacy(raw):
        return _legacy_config(raw, path, sources)
    return llava_config(raw, path) if is_llava(raw) else raw


def is_legacy(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of TinyLLaVABench, the code before TinyLLaVA Factory."""
    return str(raw.get("model_type")) in LEGACY_FAMILIES


def is_llava(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of transformers' own LlavaForConditionalGeneration."""
    return raw.get("model_type") == "llava"


def _legacy_config(raw: Mapping[str, Any], path: Path, sources: Path | None) -> dict[str, Any]:
    """The tower's config lies beside its weights, or in the repository that `mm_vision_tower` names."""
    beside = path.parent / "vision_tower" / "config.json"
    name = str(raw.get("mm_vision_tower") or "")
    vision = read_json_object(beside) if lexists(beside) else named_config(name, sources)
    if vision is None:
        raise CheckpointError(f"{beside}: no such file. Give --sources DIR with {name}/config.json in it.")
    rows, tokens = raw.get("vocab_size"), tokenizer_length(path.parent)
    if type(rows) is int and tokens is not None:  # its loader cuts embedding and head to the tokenizer
        raw = {**raw, "vocab_size": min(rows, tokens)}
    return factory_config(raw, vision, path)


def tokenizer_length(directory: Path) -> int | None:
    """Number of tokens, as `len` of upstream's slow tokenizer gives it; None where there are no such files.

    Raises:
        CheckpointError: a file is damaged.
        MissingExtraError: sentencepiece is not installed.
    """
    model, vocabulary = directory / "tokenizer.model", directory / "vocab.json"
    if model.is_file():
        count = _count_pieces(model)
    elif vocabulary.is_file():
        count = len(read_json_object(vocabulary))
    else:
        return None
    added: set[int] = set()
    for name, key in (("tokenizer_config.json", "added_tokens_decoder"), ("added_tokens.json", None)):
        if lexists(directory / name):
            values = read_json_object(directory / name)
            with guarded(directory / name, CheckpointError):
                added |= {int(index) for index in (values.get(key) or () if key else values.values())}
    return count + sum(1 for index in added if index >= count)


def _count_pieces(path: Path) -> int:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise MissingExtraError(
            f"{path}: a checkpoint of TinyLLaVABench needs the package sentencepiece: "
            "pip install sentencepiece."
        ) from None
    with guarded(path, CheckpointError):
        return int(SentencePieceProcessor(model_proto=read_small_file(path)).GetPieceSize())


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises:
        CheckpointError: the file is missing, not JSON, or not an object.
    """
    return parse_json_object(read_small_file(path), path)


def read_small_file(path: Path) -> bytes:
    """The bytes of a file; errors as `read_json_object`."""
    try:
        path.lstat()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. A checkpoint directory needs it.") from None
    except (OSError, ValueError):
        pass  # the next line says it
    return read_user_file(path, most=MAX_CONFIG_BYTES, error=CheckpointError)


def parse_json_object(data: bytes, path: Path) -> dict[str, Any]:
    """What a JSON file's bytes say; errors as `read_json_object`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once_each)
        if b"\\u" in data:  # half a surrogate pair is no text, and no file can be written with it
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose names have one value each: the `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: a name has two different values, of which readers take one in silence.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise ValueError(f"{name!r} is there twice, with different values")
    return found


def named_config(name: str, sources: Path | None) -> dict[str, Any] | None:
    """`<sources>/<name>/config.json`, where there is one."""
    if sources is None or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    path = sources / name / "config.json"
    return read_json_object(path) if lexists(path) else None
