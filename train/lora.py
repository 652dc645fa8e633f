"""Low-rank updates of linear layers through PEFT (Hu et al., arXiv 2106.09685)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from tinyllava_edge.bundle import sha256_of_file
from tinyllava_edge.checkpoint.layouts import ADAPTER_CONFIG, adapter_file
from tinyllava_edge.console import note
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.lora_config import LoraConfig
from tinyllava_edge.model.tensor_files import opened_tensors
from tinyllava_edge.model.vlm import TinyLlava

from .model import TinyLlavaForTraining
from .options import LoraOptions
from .training_options import Part

# Relative, in float32: what adding in another order costs.
_MERGE_TOLERANCE = 1e-5


def updated_layers(part: nn.Module) -> dict[str, nn.Linear]:
    """The layers of a part that have an update, by name; "" is the part itself.

    As upstream, layers with `head` in their name have none (docs/sources/tinyllava.md#lora).
    """
    return {
        name: module
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear) and "head" not in name
    }


def add_lora(model: TinyLlava, parts: Sequence[Part], options: LoraOptions) -> Any:
    """Put an update beside each of `updated_layers` of some parts; all other weights are frozen.

    Returns:
        PEFT's wrapper; `model` itself computes with the updates from now on.
    """
    targets = [
        f"{part}.{name}" if name else part
        for part in parts
        for name in updated_layers(model.get_submodule(part))
    ]
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        bias="none",
    )
    return peft.get_peft_model(model, config)


def save_adapter(adapted: Any, directory: Path, *, base: str | None = None) -> None:
    """Write the updates alone, as PEFT and upstream do: adapter_config.json and adapter_model.safetensors.

    `base` names the checkpoint that they are of.
    """
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink()  # PEFT's form, with nothing filled in


def load_adapter(adapted: Any, directory: Path) -> None:
    """Go on from updates that PEFT, this program or upstream saved.

    Raises:
        CheckpointError: they are damaged, or of other modules, another rank or another scale.
        UnsupportedModelError: they are no plain LoRA.
    """
    path, config = adapter_file(directory), LoraConfig(directory / ADAPTER_CONFIG)
    with opened_tensors(path, False) as (names, read):
        state = {name: read(name) for name in names}
    wanted = {name: tuple(tensor.shape) for name, tensor in peft.get_peft_model_state_dict(adapted).items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != wanted:
        odd = min(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise CheckpointError(
            f"{path}: {odd} is {found.get(odd, 'missing')}, this run's is {wanted.get(odd, 'none')}. Tune "
            "the parts that the adapter is of, with its rank."
        )
    own = adapted.peft_config["default"]
    for name in found:
        module = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
        if config.rank_and_scale(module) != (own.r, own.lora_alpha / own.r):
            raise CheckpointError(
                f"{config.path}: use_rslora or alpha_pattern gives the update of {module} another scale than "
                "alpha / r, with which this run would go on. Merge it, and start from what comes out."
            )
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise CheckpointError(f"{path}: holds NaN or infinity: the file is damaged.")
    peft.set_peft_model_state_dict(adapted, state)


def adapter_sha256(directory: Path) -> str:
    """Which updates a run went on from."""
    return sha256_of_file(adapter_file(directory))


def merge_lora(model: TinyLlava, adapted: Any, probe: Mapping[str, Any]) -> float:
    """Add the updates to the weights, and measure that the model computes the same.

    Args:
        model: in float32.
        adapted: of `add_lora`.
        probe: a batch.

    Returns:
        Largest difference of the logits of `probe`, relative to the largest logit. A large one is said:
        the run is not lost for it.
    """
    model.eval()
    before = _logits(model, probe)
    adapted.merge_and_unload()
    after = _logits(model, probe)
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= _MERGE_TOLERANCE:
        note(
            f"merging the LoRA update changes the logits by {difference:.1e} of the largest one, expected at "
            f"most {_MERGE_TOLERANCE:.0e}: the update outgrew its weights. Judge the model before you use "
            "it, or train again with a lower --learning-rate.",
            is_fault=True,
        )
    return difference


@torch.no_grad()
def _logits(model: TinyLlava, probe: Mapping[str, Any]) -> torch.Tensor:
    inputs = {
        key: value for key, value in probe.items() if isinstance(value, torch.Tensor) and key != "labels"
    }
    return TinyLlavaForTraining(model).learned_logits(**inputs)
