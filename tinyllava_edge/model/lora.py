"""Merge a LoRA adapter while its base streams by: W + (alpha / r) B A (Hu et al., arXiv 2106.09685)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tinyllava_edge.checkpoint.layouts import ADAPTER_CONFIG, adapter_file
from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

from .lora_config import LoraConfig
from .tensor_files import TensorReader, opened_tensors

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
EIGHT_BITS = (
    "int8 without its scale, as a QLoRA run saves its base. Merge the adapter into the original base model "
    "and export that."
)


@dataclass(frozen=True)
class Adapter:
    """The adapter's matrices by canonical module name, and how much each weighs."""

    path: Path
    config: LoraConfig
    sides: dict[str, dict[str, torch.Tensor]]  # module -> {"A": [r, in], "B": [out, r]}
    names: dict[str, str]  # module -> as PEFT knows it

    @classmethod
    def read(
        cls, directory: Path, prefixes: dict[str, str], part: str | None, allow_pickle: bool = False
    ) -> "Adapter":
        """Read `adapter_config.json` and `adapter_model.safetensors`, or `.bin`.

        Args:
            directory: the checkpoint.
            prefixes: upstream's prefix of each part, and ours.
            part: only the modules of that part.
            allow_pickle: read `adapter_model.bin`.

        Raises:
            UnsupportedModelError: a PEFT variant with another merge (DoRA, ...).
            CheckpointError: a key that is no LoRA matrix, a matrix without its other half, or rank
                and alpha that are no numbers.
        """
        config = LoraConfig(directory / ADAPTER_CONFIG)
        path = adapter_file(directory)
        sides: dict[str, dict[str, torch.Tensor]] = {}
        names: dict[str, str] = {}
        with opened_tensors(path, allow_pickle) as (keys, read):
            for key in keys:
                match = _KEY.fullmatch(key)
                prefix = next((p for p in prefixes if match and match["module"].startswith(p)), None)
                if match is None or prefix is None:
                    raise CheckpointError(f"{path}: {key!r} is not a LoRA matrix of a part of the model.")
                module = prefixes[prefix] + match["module"][len(prefix) :]
                if part is None or module.startswith(f"{part}."):
                    names[module] = match["module"]
                    sides.setdefault(module, {})[match["side"]] = read(key)
        for module, pair in sides.items():
            if set(pair) != {"A", "B"}:
                raise CheckpointError(f"{path}: {module} has only one of lora_A and lora_B.")
        return cls(path, config, sides, names)

    def merge(self, readers: Iterator[tuple[str, TensorReader]]) -> Iterator[tuple[str, TensorReader]]:
        """What is yielded beside a name adds the module's update to its weight.

        Raises:
            CheckpointError: an adapter's module is not in the base, or shapes differ.
        """
        left = dict(self.sides)
        for name, read in readers:
            pair = left.pop(name.removesuffix(".weight"), None) if name.endswith(".weight") else None
            yield name, partial(self._merged, name, read, pair)
        if left:
            raise CheckpointError(f"{self.path}: {min(left)!r} is not a module of the base model.")

    def _merged(self, name: str, read: TensorReader, pair: dict[str, torch.Tensor] | None) -> torch.Tensor:
        weight = read()
        if weight.dtype == torch.int8:
            raise UnsupportedModelError(f"{self.path.parent}: {name!r} is {EIGHT_BITS}")
        if pair is None:
            return weight
        module, (down, up) = name.removesuffix(".weight"), (pair["A"], pair["B"])
        if not self.config.has(self.names[module]):
            raise CheckpointError(
                f"{self.path}: {module!r} is none of {ADAPTER_CONFIG}'s target_modules and layers. "
                "PEFT would leave it out in silence."
            )
        rank, scale = self.config.rank_and_scale(self.names[module])
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
        if not update.isfinite().all():
            raise CheckpointError(f"{self.path}: the update of {name!r} holds NaN or infinity.")
        return weight.float() + scale * update
