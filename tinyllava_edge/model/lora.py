"""Merge a LoRA adapter while its base streams by: W + (alpha / r) B A (Hu et al., arXiv 2106.09685)."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinyllava_edge.config import read_json_object
from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

from .tensor_files import opened_safetensors

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
EIGHT_BITS = (
    "int8 without its scale, as a QLoRA run saves its base. Merge the adapter into the original base model "
    "and export that."
)
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
            CheckpointError: a key that is no LoRA matrix, a matrix without its other half, or no scale.
        """
        config = read_json_object(directory / ADAPTER_CONFIG)
        for name in _UNSUPPORTED:
            if config.get(name):
                raise UnsupportedModelError(f"{directory / ADAPTER_CONFIG}: {name} is not supported.")
        if config.get("bias", "none") != "none" or config.get("peft_type") != "LORA":
            raise UnsupportedModelError(f"{directory / ADAPTER_CONFIG}: not LoRA with bias 'none'.")
        _check_scales(directory / ADAPTER_CONFIG, config)
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
        update = pair["B"].float() @ pair["A"].float()
        if update.shape != weight.shape:
            raise CheckpointError(
                f"{self.path}: the update of {name!r} has shape {list(update.shape)}, the base "
                f"{list(weight.shape)}."
            )
        return weight.float() + self._scale(name.removesuffix(".weight"), len(pair["A"])) * update

    def _scale(self, module: str, rank: int) -> float:
        alpha = float(self.config["lora_alpha"])
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?{pattern}", module):
                alpha = float(value)
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)


def _check_scales(path: Path, config: dict[str, Any]) -> None:
    """`lora_alpha`, and `alpha_pattern`: regular expressions of modules that have another one."""
    patterns = config.get("alpha_pattern") or {}
    try:
        for value in (config["lora_alpha"], *patterns.values()):
            if not math.isfinite(float(value)):
                raise ValueError
        for pattern in patterns:
            re.compile(pattern)
    except (AttributeError, KeyError, TypeError, ValueError, re.error):
        raise CheckpointError(
            f"{path}: lora_alpha {config.get('lora_alpha')!r} and alpha_pattern {patterns!r} are not the "
            "numbers that PEFT writes. Copy the checkpoint again."
        ) from None
