"""The JSON files of a checkpoint: read with one clear error each, in TinyLLaVA Factory's words."""

import json
from collections.abc import Mapping
from functools import cache
from os.path import lexists  # a link that leads nowhere is not absent, but damaged
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from tinyllava_edge.errors import CheckpointError, MissingExtraError, MissingFileError, guarded
from tinyllava_edge.user_files import MAX_CONFIG_BYTES, read_user_file

from .llava_line import Line, is_tower, line_config, line_of, no_tower, tower_config, tower_name
from .nanovlm import is_nanovlm, nanovlm_config
from .other_layouts import llava_config
from .source_names import names_under_sources, say_taken

_PIXEL_KEYS = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor", "do_center_crop")
PROCESSOR_FILE = "preprocessor_config.json"
NESTED_PROCESSOR = "processor_config.json"  # of transformers 5: the same under the key `image_processor`


def as_factory_config(
    raw: dict[str, Any], path: Path, sources: Path | None = None, rows: int | None = None
) -> dict[str, Any]:
    """What is in a `config.json`, as TinyLLaVA Factory would write it, whatever layout the checkpoint has.

    `rows` are those of the vocabulary that a loader of LLaVA's code line keeps at most.

    Raises:
        CheckpointError: the config of the tower of such a checkpoint is missing or not JSON.
    """
    if (line := line_of(raw)) is not None:
        return _line_config(raw, line, path, sources, rows)
    if is_nanovlm(raw):
        return nanovlm_config(raw, path)
    return llava_config(raw, path) if is_llava(raw) else raw


def is_model(folder: Path) -> bool:
    """Whether a directory's config.json is of a whole model, not of a language model or tower alone."""
    path = folder / "config.json"
    raw = read_json_object(path) if lexists(path) else {}
    known = raw.get("model_type") == "tinyllava" or is_llava(raw) or is_nanovlm(raw)
    return known or line_of(raw) is not None


def is_llava(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of transformers' own LlavaForConditionalGeneration."""
    return raw.get("model_type") == "llava" and line_of(raw) is None


def _line_config(
    raw: Mapping[str, Any], line: Line, path: Path, sources: Path | None, rows: int | None
) -> dict[str, Any]:
    """The tower's config is inside, beside its weights, or in the repository that `mm_vision_tower` names."""
    beside = path.parent / "vision_tower" / "config.json"
    found = beside if lexists(beside) else _tower_file(tower_name(raw), sources)
    tower = tower_config(raw, None if found is None else read_json_object(found))
    if tower is None:
        raise no_tower(raw, path)
    stored = raw.get("vocab_size")
    if type(stored) is int and rows is not None:
        raw = {**raw, "vocab_size": min(stored, rows)}
    vision, under = tower
    return line_config(raw, line, vision, path, f"{path if found is None else found}: {under}")


def _tower_file(name: str, sources: Path | None) -> Path | None:
    """A tower's config.json under `sources`, or there itself."""
    named = named_file(name, sources)
    if named is None and sources is not None and lexists(sources / "config.json"):
        return sources / "config.json" if is_tower(read_json_object(sources / "config.json")) else None
    return named


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
    elif (whole := directory / "tokenizer.json").is_file():
        return _count_tokens(whole)
    else:
        return None
    settings = directory / "tokenizer_config.json"
    with guarded(settings, CheckpointError):
        added = added_tokens(directory, read_json_object(settings) if lexists(settings) else {})
    return count + sum(1 for index in added if index >= count)


def _count_tokens(path: Path) -> int:
    values = read_json_object(path)
    with guarded(path, CheckpointError):
        added = {token["content"] for token in values["added_tokens"]}
        return len(added | {*values["model"]["vocab"]})


def _count_pieces(path: Path) -> int:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise MissingExtraError(
            f"{path}: a checkpoint of LLaVA's code line needs the package sentencepiece: "
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
        raise MissingFileError(f"{path}: no such file. A checkpoint directory needs it.") from None
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


def added_tokens(directory: Path, settings: Mapping[str, Any]) -> dict[int, Any]:
    """Tokens that are put beside a tokenizer's own vocabulary, by id.

    `added_tokens.json` counts only where tokenizer_config.json (`settings`) has no `added_tokens_decoder`: so
    transformers reads them since it writes that key (docs/sources/tinyllava.md#token-ids).
    """
    older, key = directory / "added_tokens.json", "added_tokens_decoder"
    named = {int(i): text for text, i in read_json_object(older).items()} if lexists(older) else {}
    if key not in settings:
        return {index: {"content": text, "normalized": False} for index, text in named.items()}
    found = {int(index): token for index, token in settings[key].items()}
    for index, text in named.items():
        if index in found and found[index]["content"] != text:
            raise CheckpointError(
                f"{older}: {text!r} has id {index}, which tokenizer_config.json gives another token."
            )
    if unread := [repr(text) for index, text in named.items() if index not in found]:
        _say_unread(older, ", ".join(unread[:4]))
    return found


@cache
def _say_unread(path: Path, tokens: str) -> None:
    from tinyllava_edge.console import note  # rich, which a program that opens a bundle does not need

    note(f"{path}: {tokens} is no token here, as tokenizer_config.json has its own added_tokens_decoder")


def named_config(name: str, sources: Path | None) -> dict[str, Any] | None:
    """What the file of `named_file` says."""
    path = named_file(name, sources)
    return None if path is None else read_json_object(path)


def named_file(name: str, sources: Path | None) -> Path | None:
    """`<sources>/<name>/config.json`, where there is one; of a path also what its end names."""
    for each in names_under_sources(name) if sources is not None else []:
        assert sources is not None
        path = sources / each / "config.json"
        if lexists(path):
            if each != name:
                say_taken(name, str(path))
            return path
    return None


def processor_in(folder: Path) -> Path | None:
    """The file in a folder that says how pictures are prepared.

    Raises:
        CheckpointError: there are two, and they differ: transformers 5 takes one, upstream's the other.
    """
    plain, nested = folder / PROCESSOR_FILE, folder / NESTED_PROCESSOR
    has_nested = lexists(nested) and "image_processor" in read_json_object(nested)
    if has_nested and lexists(plain):
        ours, theirs = read_processor(plain), read_processor(nested)
        odd = sorted(
            key for key in ours.keys() & theirs.keys() if key in _PIXEL_KEYS and ours[key] != theirs[key]
        )
        if odd:
            raise CheckpointError(
                f"{plain}: {odd[0]} is {shown(ours[odd[0]])}, and {shown(theirs[odd[0]])} in {nested}. "
                "Remove the one that is not meant."
            )
    return plain if lexists(plain) else nested if has_nested else None


def read_processor(path: Path) -> dict[str, Any]:
    """The image processor's values, as either file has them.

    Raises:
        CheckpointError: the file is damaged, or its `image_processor` is no object.
    """
    values = read_json_object(path)
    if path.name == NESTED_PROCESSOR:
        values = values.get("image_processor")  # type: ignore[assignment]
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: image_processor is {shown(values)}, expected an object.")
    return values
