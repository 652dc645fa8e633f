"""The loop that every stage of nano goes through: Muon and AdamW, warm-up and cosine, a log."""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import get_cosine_schedule_with_warmup

from tinyllava_edge.console import progress
from tinyllava_edge.errors import DataError
from tinyllava_edge.model.vlm import TinyLlava

from .recipe import Stage

_GRADIENT_NORM = 1.0  # that gradients are cut to
_LOG_EVERY = 10  # steps a line


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What all stages of a run share."""

    accelerator: Accelerator
    log: Path  # one JSON object a line

    def optimise(
        self,
        name: str,
        optimizers: Sequence[torch.optim.Optimizer],
        losses: Iterable[Callable[[], torch.Tensor]],
        *,
        num_steps: int,
        warmup_ratio: float,
    ) -> None:
        """Take one step of all optimizers for each loss: linear warm-up, cosine to zero.

        Raises:
            DataError: a loss is not finite.
        """
        warmup = int(num_steps * warmup_ratio)
        schedules = [get_cosine_schedule_with_warmup(each, warmup, num_steps) for each in optimizers]
        parameters = [p for each in optimizers for group in each.param_groups for p in group["params"]]
        started, recent = time.monotonic(), 0.0
        with progress() as bar:
            for step, compute in enumerate(bar.track(losses, total=num_steps, description=name), start=1):
                # On a CPU the fused attention's backward pass takes longer than all matrix products together.
                with self.accelerator.autocast(), sdpa_kernel(SDPBackend.MATH):
                    loss = compute()
                self.accelerator.backward(loss)
                torch.nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
                for optimizer, schedule in zip(optimizers, schedules, strict=True):
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad(set_to_none=True)
                recent += float(loss.detach())
                if not math.isfinite(recent):
                    raise DataError(f"{name}: the loss of step {step} is not finite. Lower the rates.")
                if step % _LOG_EVERY == 0 or step == num_steps:
                    mean = recent / ((step - 1) % _LOG_EVERY + 1)
                    seconds = round(time.monotonic() - started, 1)
                    rate = max(rate for schedule in schedules for rate in schedule.get_last_lr())
                    line = {
                        "stage": name,
                        "step": step,
                        "loss": mean,
                        "learning_rate": rate,
                        "seconds": seconds,
                    }
                    with self.log.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    recent = 0.0


def choose_precision(wanted: str) -> str:
    """Accelerate's name of the arithmetic: for `auto` bf16 where the CPU computes in it."""
    cpu = torch.cpu.get_capabilities()
    return "bf16" if wanted == "auto" and (cpu.get("avx512_bf16") or cpu.get("amx_bf16")) else "no"


def muon_and_adamw(
    modules: Sequence[tuple[nn.Module, float]], *, muon_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside of transformer layers, AdamW for all else.

    From random weights Muon needs about a third of AdamW's steps here. Source: Jordan 2024, "Muon: an
    optimizer for hidden layers in neural networks"; embeddings, first and last layers stay with AdamW.
    """
    matrices: list[nn.Parameter] = []
    groups: list[dict[str, Any]] = []
    for module, rate in modules:
        decayed: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []  # biases, norms and the like
        for name, parameter in module.named_parameters():
            is_hidden = parameter.ndim == 2 and ".layers." in f".{name}"
            chosen = matrices if is_hidden else decayed if parameter.ndim > 1 else vectors
            chosen.append(parameter)
        groups.append({"params": decayed, "lr": rate, "weight_decay": weight_decay})
        groups.append({"params": vectors, "lr": rate, "weight_decay": 0.0})
    rest = torch.optim.AdamW(groups, betas=(0.9, 0.98))  # the memory of second moments that short runs need
    return [torch.optim.Muon(matrices, lr=muon_rate, weight_decay=weight_decay), rest] if matrices else [rest]


def train_stage(
    model: TinyLlava,
    stage: Stage,
    losses: Iterable[Callable[[], torch.Tensor]],
    *,
    num_steps: int,
    loop: Loop,
) -> None:
    """Train the parts that `stage` names on the losses of one batch after the other; the rest is frozen."""
    model.train()
    for part in ("vision_tower", "connector", "language_model"):
        model.get_submodule(part).requires_grad_(part in stage.learning_rates)
    modules = [(model.get_submodule(part), rate) for part, rate in stage.learning_rates.items()]
    loop.optimise(
        stage.name,
        muon_and_adamw(modules, muon_rate=stage.muon_rate, weight_decay=stage.weight_decay),
        losses,
        num_steps=num_steps,
        warmup_ratio=stage.warmup_ratio,
    )
    model.requires_grad_(True).eval()
