"""What `adapter_config.json` says of each module: whether it is adapted, rank and alpha, as PEFT reads it.

Source: docs/sources/tinyllava.md#patterns-of-a-lora-adapter.
"""

import math
import re
import time
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import regex

from tinyllava_edge.checkpoint.files import read_json_object
from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

_SECONDS = 5.0  # for all matches of a file: a regular expression may take for ever
# What `re` and `regex` read alike, without looking around or back.
_PLAIN = re.compile(r"(?:[\w.|()^$*+?,:-]|\[[\w-]+\]|\\[.dw-]|\{\d+(?:,\d*)?\})*", re.ASCII)
# Of adapter_config.json: a number, and what gives other ones to modules that a regular expression fits.
_PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}
# What is known, and changes nothing of what is computed with a trained adapter.
_HARMLESS = {
    *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "auto_mapping", "revision"),
    *("inference_mode", "init_lora_weights", "lora_dropout", "loftq_config", "eva_config", "corda_config"),
    *("megatron_config", "megatron_core", "qalora_group_size", "runtime_config", "ephemeral_gpu_offload"),
    *("r", "lora_alpha", "bias", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "layers_to_transform", "layers_pattern"),
}


class LoraConfig:
    """The checked content of an adapter_config.json.

    Raises:
        UnsupportedModelError: a PEFT variant with another merge (DoRA, ...).
        CheckpointError: values that PEFT does not write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values = config = read_json_object(path)
        for name, value in config.items():
            if name not in _HARMLESS and value:
                raise UnsupportedModelError(f"{path}: {name} is not supported.")
        for name, found, only in (
            ("peft_type", config.get("peft_type"), "LORA"),
            ("bias", config.get("bias", "none"), "none"),
        ):
            if found != only:
                raise UnsupportedModelError(
                    f"{path}: {name} {shown(found)} is not supported, only {only!r} is."
                )
        self._check_numbers()
        self._check_targets()
        self._left = _SECONDS

    def has(self, module: str) -> bool:
        """Whether PEFT adapts a module of this full name; of others it drops an adapter in silence."""
        targets, layers = self._values.get("target_modules"), self._values.get("layers_to_transform")
        if targets is None or targets == "all-linear":
            return True
        if isinstance(targets, str):
            return self._fits(targets, module)
        if module in targets:
            return True
        found = any(module.endswith(f".{target}") for target in targets)
        if not found or layers is None or layers == []:
            return found
        patterns = self._values.get("layers_pattern") or "[^.]*"
        numbers = {
            int(number)
            for pattern in ([patterns] if isinstance(patterns, str) else patterns)
            for place, number in enumerate(module.split("."))
            if number.isdigit() and place and self._fits(pattern, module.split(".")[place - 1])
        }
        if len(numbers) > 1:
            raise CheckpointError(
                f"{self.path}: layers_to_transform: {module!r} is of layers {sorted(numbers)}."
            )
        return bool(numbers & set(layers if isinstance(layers, list) else [layers]))

    def rank_and_scale(self, module: str) -> tuple[float, float]:
        """The rank of a module's matrices, and what their product is multiplied by.

        Raises:
            CheckpointError: versions of PEFT read the patterns otherwise.
        """
        now = [
            self._of(key, self._first(self._values.get(_PATTERNS[key]) or {}, module)) for key in _PATTERNS
        ]
        both = [pattern for name in _PATTERNS.values() for pattern in self._values.get(name) or {}]
        old = next((pattern for pattern in both if self._fits(rf"(?:.*\.{pattern}$).*", module)), module)
        if now != [self._of(key, old) for key in _PATTERNS]:
            raise CheckpointError(
                f"{self.path}: rank_pattern and alpha_pattern give {module!r} one rank and alpha in PEFT "
                "0.10 and others since 0.14. Write the full names of the modules there."
            )
        rank, alpha = now
        return rank, alpha / (rank**0.5 if self._values.get("use_rslora") else rank)

    def _of(self, key: str, pattern: str | None) -> float:
        return float((self._values.get(_PATTERNS[key]) or {}).get(pattern, self._values[key]))

    def _first(self, patterns: dict[str, Any], module: str) -> str | None:
        return next((pattern for pattern in patterns if self._fits(rf"(.*\.)?({pattern})", module)), None)

    def _fits(self, pattern: str, text: str) -> bool:
        start = time.monotonic()
        try:
            return regex.fullmatch(pattern, text, timeout=max(self._left, 0.001)) is not None
        except TimeoutError:
            raise CheckpointError(
                f"{self.path}: matching {shown(pattern)} takes too long. Write the modules' names instead."
            ) from None
        finally:
            self._left -= time.monotonic() - start

    def _check_numbers(self) -> None:
        """Rank and alpha, and the patterns of modules that have others."""
        for key, pattern_key in _PATTERNS.items():
            patterns = self._values.get(pattern_key) or {}
            try:
                for value in (self._values[key], *patterns.values()):
                    if isinstance(value, bool | str) or not 0 < float(value) < math.inf:
                        raise ValueError
                for pattern in patterns:
                    _check_pattern(pattern)
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError, re.error):
                raise CheckpointError(
                    f"{self.path}: {key} {self._values.get(key)!r:.80} with {pattern_key} {patterns!r:.80} "
                    "is not what PEFT writes. Copy the checkpoint again."
                ) from None

    def _check_targets(self) -> None:
        """Which modules are adapted: names, or one regular expression; and of which layers."""
        targets, layers = self._values.get("target_modules"), self._values.get("layers_to_transform")
        patterns = self._values.get("layers_pattern")
        try:
            if isinstance(targets, str):
                _check_pattern(targets)
            elif targets is not None:
                _check_texts(targets)
            if isinstance(targets, str) and layers:
                raise ValueError
            if layers is not None and not all(
                type(x) is int for x in (layers if isinstance(layers, list) else [layers])
            ):
                raise ValueError
            for pattern in [patterns] if isinstance(patterns, str) else _check_texts(patterns or []):
                _check_pattern(pattern)
                if "|" in pattern:  # PEFT puts no brackets round it
                    raise ValueError
        except (TypeError, ValueError, re.error):
            raise CheckpointError(
                f"{self.path}: target_modules {shown(targets)} with layers_to_transform {shown(layers)} and "
                f"layers_pattern {shown(patterns)} is not what PEFT writes, or not supported."
            ) from None


def _check_texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError
    return values


def _check_pattern(pattern: str) -> None:
    """A regular expression that `re` takes and that `regex`, which can be stopped, reads alike."""
    if not _PLAIN.fullmatch(pattern):
        raise ValueError
    re.compile(pattern)
