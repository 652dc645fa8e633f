"""The values of a config.json, checked one by one before anything is computed or allocated from them."""

from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

from .families import BOOKKEEPING_KEYS, NEUTRAL_VALUES, REFUSED_KEYS, Part
from .rope import read_rope_scaling

MAX_SIZE = 1 << 24  # of anything: what is larger is a lie, or meant to exhaust the memory
MAX_LAYERS = 1 << 10


class Translated(dict[str, Any]):
    """A config.json in TinyLLaVA Factory's words, which are not its own.

    Attributes:
        own: a key of ours -> the file's, for messages; a part's -> its file and what stands before its keys.
    """

    def __init__(self, values: Mapping[str, Any], own: Mapping[str, str]) -> None:
        super().__init__(values)
        self.own = own


def said_as(raw: Mapping[str, Any], key: str) -> str:
    """What the file calls a key of the top level."""
    return raw.own.get(key, key) if isinstance(raw, Translated) else key


def place_of(raw: Mapping[str, Any], part: str, path: Path) -> str:
    """A part's file and what stands before its keys there, for messages."""
    place = f"{path}: {part}."
    return raw.own.get(part, place) if isinstance(raw, Translated) else place


def resolved_part(raw: Mapping[str, Any], key: str, parts: Mapping[str, Part], path: Path) -> dict[str, Any]:
    """One part's values: its diff over its family's defaults.

    Args:
        raw: the whole config.json.
        key: `text_config` or `vision_config`.
        parts: the families that are known.
        path: of the file, for messages.

    Raises:
        CheckpointError: a value cannot be.
        UnsupportedModelError: the family or a key is not known, or we compute only another value of it.
    """
    diff = raw.get(key)
    if not isinstance(diff, dict):
        raise CheckpointError(f"{path}: {key} is missing or not an object.")
    family, place = diff.get("model_type"), place_of(raw, key, path)
    if not isinstance(family, str) or family not in parts:
        raise UnsupportedModelError(
            f"{place}model_type {shown(family)} is not supported. Supported: {', '.join(parts)}."
        )
    defaults = parts[family].defaults
    rope_scaling = read_rope_scaling(diff, parts[family].rope_kinds, place)
    values = {**defaults, **_known_values(diff, parts[family], place)}
    for name, wanted in parts[family].only.items():
        if values[name] != wanted:
            raise UnsupportedModelError(
                f"{place}{name} = {shown(values[name])} is not supported for {family!r}, only {wanted!r} is."
            )
    for name, value in values.items():
        if not _is_possible(name, value, defaults[name]):
            raise CheckpointError(f"{place}{name} = {shown(value)} is not a possible value.")
        if isinstance(defaults[name], float) and value is not None:
            values[name] = float(value)  # transformers 5 takes no whole number there
    if rope_scaling is not None:
        values["rope_scaling"] = rope_scaling
    values["architecture"] = family
    return values


def _known_values(diff: dict[str, Any], part: Part, place: str) -> dict[str, Any]:
    """The keys of a diff that the family has; one that might change the maths is refused."""
    known = part.defaults.keys()
    values = {name: value for name, value in diff.items() if name in known}
    for name, value in diff.items():
        if name == "rope_scaling" and isinstance(value, dict):
            continue  # `read_rope_scaling` does
        if name == "rope_parameters" and isinstance(value, dict):  # transformers >= 5
            values.update({k: v for k, v in value.items() if k in known})
        elif name not in known | BOOKKEEPING_KEYS and not _is_neutral(name, value, part):
            reason = REFUSED_KEYS.get(
                name,
                "it is not known, so the model might be computed wrongly. Remove the key if it has no effect",
            )
            raise UnsupportedModelError(f"{place}{name} = {shown(value)}: {reason}.")
    return values


def _is_neutral(name: str, value: Any, part: Part) -> bool:
    """Whether a key that no family knows changes nothing."""
    if name in part.by_layer and isinstance(value, list):
        repeated = part.by_layer[name]
        return all(kind == repeated[layer % len(repeated)] for layer, kind in enumerate(value))
    return value in NEUTRAL_VALUES[name] if name in NEUTRAL_VALUES else not value


def _is_possible(name: str, value: Any, default: Any) -> bool:
    """Whether a value has its default's type, and a size, id or number that can be."""
    is_token_id = name.endswith("_token_id")
    if value is None:
        return default is None or is_token_id
    if name == "eos_token_id" and isinstance(value, list):
        return bool(value) and all(type(one) is int and 0 <= one <= MAX_SIZE for one in value)
    if isinstance(default, bool | str) or name == "hidden_activation":
        return type(value) is (str if default is None else type(default))
    if isinstance(default, list):
        return isinstance(value, list) and all(type(v) in (int, float) and 0 < v <= MAX_SIZE for v in value)
    if isinstance(default, float):
        return type(value) in (int, float) and 0 < value <= 1e12
    most = MAX_LAYERS if name.endswith("_layers") else MAX_SIZE
    return type(value) is int and (0 if is_token_id else 1) <= value <= most


def whole_number(raw: Mapping[str, Any], key: str, default: int, path: Path, minimum: int = 1) -> int:
    """One number of the top level.

    Raises:
        CheckpointError: it is no whole number, or not a possible one.
    """
    value = raw.get(key, default)
    if type(value) is not int or not minimum <= value <= MAX_SIZE:
        raise CheckpointError(f"{path}: {said_as(raw, key)} = {shown(value)} is not a possible whole number.")
    return value
