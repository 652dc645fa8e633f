"""The training loop: forward, backward, schedule, log.

The same optimiser loop serves every stage; what differs comes in as a function from step to loss.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from accelerate import Accelerator
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import get_cosine_schedule_with_warmup

from tinyllava_edge.checkpoint.config import IGNORE_LABEL
from tinyllava_edge.console import progress
from tinyllava_edge.errors import DataError
from tinyllava_edge.model.vlm import TinyLlava

from .data import Batch, splice_labels
from .recipes import Stage
from .snapshots import Snapshots


@dataclass(frozen=True)
class TrainingLog:
    """What a run leaves behind on its way: one JSON object a line, and snapshots where it can be resumed."""

    path: Path
    every: int = 10  # steps a line
    seconds_before: float = 0.0  # of the run's part before an interruption
    snapshots: Snapshots | None = None

    def write(self, **values: Any) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def choose_precision(wanted: str) -> str:
    """Accelerate's name of the arithmetic: bf16 where it is asked for, or the CPU computes in it."""
    if wanted == "auto":
        cpu = torch.cpu.get_capabilities()
        wanted = "bf16" if cpu.get("avx512_bf16") or cpu.get("amx_bf16") else "fp32"
    return "no" if wanted == "fp32" else wanted


def parameter_groups(modules: Iterable[tuple[nn.Module, float]], weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups of (module, learning rate); biases, norms and other vectors are not decayed."""
    groups = []
    for module, learning_rate in modules:
        for matrices in (True, False):
            parameters = [p for p in module.parameters() if p.requires_grad and (p.ndim > 1) == matrices]
            if parameters:
                decay = weight_decay if matrices else 0.0
                groups.append({"params": parameters, "lr": learning_rate, "weight_decay": decay})
    return groups


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW with the memory of second moments that short runs need."""
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def muon_and_adamw(
    modules: Sequence[tuple[nn.Module, float]], *, muon_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside of transformer layers, AdamW for all else.

    From random weights Muon needs about a third of AdamW's steps here. Source: Jordan 2024, "Muon: an
    optimizer for hidden layers in neural networks"; embeddings, first and last layers stay with AdamW.
    """
    matrices = [
        parameter
        for module, _ in modules
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2 and ".layers." in f".{name}"
    ]
    hidden = {id(parameter) for parameter in matrices}
    groups = parameter_groups(modules, weight_decay)
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in hidden]
    rest = adamw([group for group in groups if group["params"]])
    return [torch.optim.Muon(matrices, lr=muon_rate, weight_decay=weight_decay), rest] if matrices else [rest]


def optimise(
    name: str,
    optimizers: Sequence[torch.optim.Optimizer],
    losses: Iterable[Callable[[], torch.Tensor]],
    *,
    num_steps: int,
    warmup_ratio: float,
    gradient_norm: float,
    accelerator: Accelerator,
    log: TrainingLog,
) -> None:
    """Take one step of all optimizers for each loss: linear warm-up, cosine to zero.

    Starts from the newest of the log's snapshots; `losses` are those after it.

    Raises:
        DataError: a loss is not finite.
    """
    warmup = int(num_steps * warmup_ratio)
    schedules = [get_cosine_schedule_with_warmup(optimizer, warmup, num_steps) for optimizer in optimizers]
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    done = log.snapshots.restore(optimizers, schedules) if log.snapshots else 0
    started, recent = time.monotonic(), 0.0
    with progress() as bar:
        task = bar.add_task(name, total=num_steps, completed=done)
        for step, compute in enumerate(losses, start=done + 1):
            # On a CPU the fused attention's backward pass takes longer than all matrix products together.
            with accelerator.autocast(), sdpa_kernel(SDPBackend.MATH):
                loss = compute()
            accelerator.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, gradient_norm)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
            recent += float(loss.detach())
            if not math.isfinite(recent):
                raise DataError(f"{name}: the loss of step {step} is not finite. Lower the learning rate.")
            bar.advance(task)
            if step % log.every == 0 or step == num_steps:
                count = (step - 1) % log.every + 1
                seconds = round(log.seconds_before + time.monotonic() - started, 1)
                rate = max(rate for schedule in schedules for rate in schedule.get_last_lr())
                log.write(stage=name, step=step, loss=recent / count, learning_rate=rate, seconds=seconds)
                recent = 0.0
            if log.snapshots:
                log.snapshots.save_if_due(step, optimizers, schedules)


def train_stage(
    model: TinyLlava,
    stage: Stage,
    losses: Iterable[Callable[[], torch.Tensor]],
    *,
    num_steps: int,
    gradient_norm: float,
    accelerator: Accelerator,
    log: TrainingLog,
) -> None:
    """Train the parts that `stage` names on the losses of one batch after the other; the rest is frozen."""
    model.train()
    for part in ("vision_tower", "connector", "language_model"):
        model.get_submodule(part).requires_grad_(part in stage.learning_rates)
    modules = [(model.get_submodule(part), rate) for part, rate in stage.learning_rates.items()]
    optimise(
        stage.name,
        muon_and_adamw(modules, muon_rate=stage.muon_rate, weight_decay=stage.weight_decay),
        losses,
        num_steps=num_steps,
        warmup_ratio=stage.warmup_ratio,
        gradient_norm=gradient_norm,
        accelerator=accelerator,
        log=log,
    )
    model.requires_grad_(True).eval()


def conversation_loss(model: TinyLlava, batch: Batch) -> torch.Tensor:
    """Mean cross entropy over the labelled positions of a batch."""
    rows, labels = splice_batch(model, batch)
    # Padding is on the right and attention looks left only, so no mask is needed.
    logits = model.language_model(inputs_embeds=rows).logits[:, :-1]  # [batch, positions, vocab]
    return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE_LABEL)


def splice_batch(model: TinyLlava, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Spliced rows [batch, positions, hidden] and labels [batch, positions], padded on the right.

    Cut to the tokenizer's maximum length after splicing, as upstream does.
    """
    limit = model.config.tokenizer_max_length
    hidden, device = model.config.language.hidden_size, next(model.parameters()).device
    pixels = batch.pixels.to(device)
    pictures = model.encode(pixels) if len(pixels) else pixels.new_zeros(0, 0, hidden)
    num_tokens = pictures.shape[1]  # a resampler's are not the tower's
    rows, labels, used = [], [], 0
    for ids, sample_labels in zip(batch.ids, batch.labels, strict=True):
        count = sum(1 for token in ids if token < 0)
        rows.append(model.splice(ids, pictures[used : used + count])[:limit])
        labels.append(torch.tensor(splice_labels(ids, sample_labels, num_tokens)[:limit], device=device))
        used += count
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=IGNORE_LABEL)


def count_steps(num_samples: int, stage: Stage) -> int:
    """Optimiser steps of a stage; the last batch of an epoch may be small."""
    return -(-num_samples // stage.batch_size) * stage.epochs


def shuffled(count: int, generator: torch.Generator, batch_size: int) -> list[Sequence[int]]:
    """The numbers below `count` in random order, in batches."""
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]
