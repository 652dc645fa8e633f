"""RoPE stretched to longer contexts: the kinds that llama.cpp computes as transformers does.

Source: docs/sources/language_models.md#stretched-rope.
"""

import math
from collections.abc import Mapping, Sequence
from reprlib import repr as shown
from typing import Any

from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

# Kind -> the numbers that it needs.
_NUMBERS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_OTHERS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def read_rope_scaling(diff: Mapping[str, Any], computed: Sequence[str], place: str) -> dict[str, Any] | None:
    """What `rope_scaling` (transformers 4) or `rope_parameters` (5) stretch; None where neither does.

    Args:
        diff: a `text_config`.
        computed: the kinds that the family has.
        place: the config's file, and what stands before its keys, for messages.

    Returns:
        `rope_type` and the numbers of its kind.

    Raises:
        UnsupportedModelError: another kind, or a number that the kind does not know.
        CheckpointError: a number is missing or impossible.
    """
    keys = [key for key in ("rope_scaling", "rope_parameters") if isinstance(diff.get(key), dict)]
    found = [_one(diff[key], computed, f"{place}{key}") for key in keys]
    if len(found) == 2 and found[0] != found[1]:
        raise CheckpointError(f"{place}rope_scaling and rope_parameters say different things. Remove one.")
    return found[0] if found else None


def _one(value: Mapping[str, Any], computed: Sequence[str], where: str) -> dict[str, Any] | None:
    kind = value.get("rope_type", value.get("type", "default"))
    if kind == "default":
        return None
    if kind not in computed:
        kinds = ", ".join(("default", *computed))
        raise UnsupportedModelError(
            f"{where} = {shown(value)}: RoPE scaling {shown(kind)} is not supported here, only {kinds} is."
        )
    names = _NUMBERS[kind]
    if strange := sorted(value.keys() - {*names, *_OTHERS}):
        raise UnsupportedModelError(f"{where}.{strange[0]}: {kind} has no such key, only {', '.join(names)}.")
    numbers: dict[str, Any] = {name: value.get(name) for name in names}
    for name, number in numbers.items():
        if type(number) not in (int, float) or not 1 <= number <= 1e9:
            raise CheckpointError(f"{where}.{name} = {shown(number)} is not a possible number, 1 or more.")
    if kind == "llama3" and numbers["low_freq_factor"] >= numbers["high_freq_factor"]:
        raise CheckpointError(f"{where}: low_freq_factor must be below high_freq_factor.")
    return {"rope_type": kind, **numbers}


def rope_divisors(scaling: Mapping[str, Any], theta: float, dim: int) -> list[float]:
    """What each frequency of a head's pairs is divided by, [dim / 2]: Llama 3's bands.

    Waves that turn fast stay, those longer than the original context are stretched in full, and those between
    by a share.
    """
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    divisors = []
    for index in range(0, dim, 2):
        turns = original / (2 * math.pi * theta ** (index / dim))  # of this pair over the original context
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - share) / factor + share))
    return divisors
