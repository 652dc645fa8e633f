"""The training loop: forward, backward, schedule, log, snapshots."""

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from accelerate import Accelerator
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import get_cosine_schedule_with_warmup

from tinyllava_edge.checkpoint.config import IGNORE_LABEL
from tinyllava_edge.console import progress
from tinyllava_edge.errors import DataError, RecordError
from tinyllava_edge.model.vlm import TinyLlava

from .data import Batch, splice_labels
from .snapshots import Snapshots


@dataclass(frozen=True)
class TrainingLog:
    """What a run leaves behind on its way: one JSON object a step, and snapshots where it can be resumed."""

    path: Path
    seconds_before: float  # of the run's part before an interruption
    snapshots: Snapshots

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


def optimise(
    name: str,
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Callable[[], torch.Tensor]],
    *,
    num_steps: int,
    warmup_ratio: float,
    gradient_norm: float,
    accelerator: Accelerator,
    log: TrainingLog,
) -> None:
    """Take one step for each loss: linear warm-up, cosine to zero.

    Starts from the newest of the log's snapshots; `losses` are those after it.

    Raises:
        DataError: a loss is not finite.
        RecordError: from `losses`; a snapshot has been taken.
    """
    warmup = int(num_steps * warmup_ratio)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, num_steps)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    done = log.snapshots.restore([optimizer], [schedule])
    started = time.monotonic()
    with progress() as bar:
        task = bar.add_task(name, total=num_steps, completed=done)
        step = done
        try:
            for step, compute in enumerate(losses, start=done + 1):
                # On a CPU the fused attention's backward pass takes longer than all matrix products together.
                with accelerator.autocast(), sdpa_kernel(SDPBackend.MATH):
                    loss = compute()
                accelerator.backward(loss)
                torch.nn.utils.clip_grad_norm_(parameters, gradient_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise DataError(
                        f"{name}: the loss of step {step} is not finite. Lower the learning rate."
                    )
                bar.advance(task)
                seconds = round(log.seconds_before + time.monotonic() - started, 1)
                rate = max(schedule.get_last_lr())
                log.write(stage=name, step=step, loss=value, learning_rate=rate, seconds=seconds)
                log.snapshots.save_if_due(step, [optimizer], [schedule])
        except RecordError:
            log.snapshots.save(step, [optimizer], [schedule])
            raise


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
