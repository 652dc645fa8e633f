"""Merge a LoRA adapter while its base streams by: W + (alpha / r) B A (Hu et al., arXiv 2106.09685)."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinyllava_edge.checkpoint.files import read_json_object
from tinyllava_edge.checkpoint.opened import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

from .tensor_files import opened_safetensors

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
EIGHT_BITS = (
    "int8 without its scale, as a QLoRA run saves its base. Merge the adapter into the original base model "
    "and export that."
)
# Of adapter_config.json: a number, and what gives other ones to modules that a regular expression fits.
_PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}
# PEFT variants whose merge is another one.
_UNSUPPORTED = ("use_dora", "fan_in_fan_out", "modules_to_save", "layer_replication")


@dataclass(frozen=True)
class Adapter:
    """The adapter's matrices by canonical module name, and how much each weighs."""

    path: Path
    config: dict[str, Any]
    sides: dict[str, dict[str, torch.Tensor]]  # module -> {"A": [r, in], "B": [out, r]}

    @classmethod
    def read(cls, directory: Path, prefixes: dict[str, str], part: str | None) -> "Adapter":
        """Read `adapter_config.json` and `adapter_model.safetensors`.

        Args:
            directory: the checkpoint.
            prefixes: upstream's prefix of each part, and ours.
            part: only the modules of that part.

        Raises:
            UnsupportedModelError: a PEFT variant with another merge (DoRA, ...).
            CheckpointError: a key that is no LoRA matrix, a matrix without its other half, or rank
                and alpha that are no numbers.
        """
        config = read_json_object(directory / ADAPTER_CONFIG)
        for name in _UNSUPPORTED:
            if config.get(name):
                raise UnsupportedModelError(f"{directory / ADAPTER_CONFIG}: {name} is not supported.")
        if config.get("bias", "none") != "none" or config.get("peft_type") != "LORA":
            raise UnsupportedModelError(f"{directory / ADAPTER_CONFIG}: not LoRA with bias 'none'.")
        _check_numbers(directory / ADAPTER_CONFIG, config)
        path = directory / ADAPTER_WEIGHTS
        sides: dict[str, dict[str, torch.Tensor]] = {}
        with opened_safetensors(path) as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                match = _KEY.fullmatch(key)
                prefix = next((p for p in prefixes if match and match["module"].startswith(p)), None)
                if match is None or prefix is None:
                    raise CheckpointError(f"{path}: {key!r} is not a LoRA matrix of a part of the model.")
                module = prefixes[prefix] + match["module"][len(prefix) :]
                if part is None or module.startswith(f"{part}."):
                    sides.setdefault(module, {})[match["side"]] = file.get_tensor(key)
        for module, pair in sides.items():
            if set(pair) != {"A", "B"}:
                raise CheckpointError(f"{path}: {module} has only one of lora_A and lora_B.")
        return cls(path, config, sides)

    def merge(
        self, tensors: Iterator[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
        """Strip `.base_layer` from names; what is yielded beside one adds the module's update to its weight.

        Raises:
            CheckpointError: an adapter's module is not in the base, or shapes differ.
        """
        left = dict(self.sides)
        for name, tensor in tensors:
            if tensor.dtype == torch.int8:
                raise UnsupportedModelError(f"{self.path.parent}: {name!r} is {EIGHT_BITS}")
            name = name.replace(".base_layer.", ".")
            pair = left.pop(name.removesuffix(".weight"), None) if name.endswith(".weight") else None
            yield name, partial(self._merged, name, tensor, pair)
        if left:
            raise CheckpointError(f"{self.path}: {min(left)!r} is not a module of the base model.")

    def _merged(self, name: str, weight: torch.Tensor, pair: dict[str, torch.Tensor] | None) -> torch.Tensor:
        if pair is None:
            return weight
        module, (down, up) = name.removesuffix(".weight"), (pair["A"], pair["B"])
        rank = self._value("r", module)
        if not (down.ndim == up.ndim == 2 and len(down) == up.shape[1] == rank):
            raise CheckpointError(
                f"{self.path}: lora_A {list(down.shape)} and lora_B {list(up.shape)} of {module!r} are not "
                f"of rank {rank:g}, as {ADAPTER_CONFIG} says."
            )
        update = up.float() @ down.float()
        if update.shape != weight.shape:
            raise CheckpointError(
                f"{self.path}: the update of {name!r} has shape {list(update.shape)}, the base "
                f"{list(weight.shape)}."
            )
        scale = self._value("lora_alpha", module) / (rank**0.5 if self.config.get("use_rslora") else rank)
        return weight.float() + scale * update

    def _value(self, key: str, module: str) -> float:
        value = self.config[key]
        for pattern, other in (self.config.get(_PATTERNS[key]) or {}).items():
            if re.fullmatch(rf"(.*\.)?{pattern}", module):
                value = other
        return float(value)


def _check_numbers(path: Path, config: dict[str, Any]) -> None:
    """Rank and alpha, and the patterns of modules that have others."""
    for key, pattern_key in _PATTERNS.items():
        patterns = config.get(pattern_key) or {}
        try:
            for value in (config[key], *patterns.values()):
                if not 0 < float(value) < math.inf:
                    raise ValueError
            for pattern in patterns:
                re.compile(pattern)
        except (AttributeError, KeyError, TypeError, ValueError, re.error):
            raise CheckpointError(
                f"{path}: {key} {config.get(key)!r} with {pattern_key} {patterns!r} is not what PEFT writes. "
                "Copy the checkpoint again."
            ) from None
