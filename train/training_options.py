"""How a run is trained, in the names of transformers' TrainingArguments where it has them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tinyllava_edge.errors import UsageError

Part = Literal["vision_tower", "connector", "language_model"]
How = Literal["full", "lora", "qlora"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]
Scheduler = Literal["cosine", "linear", "constant", "constant_with_warmup"]
Report = Literal["tensorboard", "wandb"]
Grid = Literal["q4_0", "int8"]

# What of a model a grid is for: the language model's GGUF, and the vision graph's linear layers.
GRID_PARTS: dict[Grid, tuple[Part, ...]] = {
    "q4_0": ("language_model",),
    "int8": ("vision_tower", "connector"),
}


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How one part is trained; a part that has none is frozen.

    Attributes:
        how: its weights themselves, or low-rank updates beside its linear layers; `qlora` keeps those layers,
            of the language model only, in 4 bits.
        from_layer: of the tower, `full`: only the layers of its encoder from this one on, counted from 0, as
            upstream's `partially-tune`.
        learning_rate: None is the run's.
        weight_decay: None is the run's.
    """

    how: How = "full"
    from_layer: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Batches, rates, arithmetic and places to report to.

    Attributes:
        max_steps: optimiser's steps in all; above 0 it decides instead of the epochs.
        learning_rate: None is upstream's for what is tuned (docs/sources/tinyllava.md#learning-rates).
        warmup_ratio: of all steps, rounded up.
        adam_beta2: 0.98 is the memory of second moments that short runs need; upstream's scripts have 0.999.
        precision: of the arithmetic; auto is bf16 where the device computes in it. Frozen parts are then kept
            in 16 bits; what is trained is kept in float32.
        attn_implementation: of transformers; auto is sdpa where the family has it.
        model_max_length: positions that are left of a conversation; None is the checkpoint's.
        group_by_modality_length: batches of pictures or of text alone, of about the same length.
        save_steps: between two snapshots; 0 takes none.
        eval_steps: between two looks at the validation set; 0 is once an epoch.
        early_stopping_patience: looks without a lower loss that end the run; 0 never does.
        fsdp: shard weights, gradients and optimiser over the processes (FSDP).
        deepspeed: DeepSpeed's own configuration, JSON.
        quantize_aware: grids of `export` that the forward pass computes with, and that the weights written
            are on, in float32.
        distill: with `quantize_aware`: learn to say what the checkpoint says that the run starts from, not
            the answers.

    Raises:
        UsageError: a value is out of range, or two do not fit together.
    """

    num_train_epochs: int = 1
    max_steps: int = 0
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float | None = None
    lr_scheduler_type: Scheduler = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    precision: Precision = "auto"
    tf32: bool = False
    attn_implementation: Attention = "auto"
    gradient_checkpointing: bool = False
    model_max_length: int | None = None
    group_by_modality_length: bool = False
    dataloader_num_workers: int = 0
    seed: int = 0
    save_steps: int = 100
    save_total_limit: int = 2
    eval_steps: int = 0
    early_stopping_patience: int = 0
    report_to: tuple[Report, ...] = ()
    fsdp: bool = False
    deepspeed: Path | None = None
    quantize_aware: Sequence[Grid] = ()
    distill: bool = False

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--precision", self.precision, get_args(Precision)),
            ("--attention", self.attn_implementation, get_args(Attention)),
            ("--scheduler", self.lr_scheduler_type, get_args(Scheduler)),
            *(("--report-to", name, get_args(Report)) for name in self.report_to),
            *(("--quantize-aware", name, get_args(Grid)) for name in self.quantize_aware),
        ):
            if value not in known:
                raise UsageError(f"{option} {value!r} is not known. Known: {', '.join(known)}.")
        at_least = {
            "--epochs": (self.num_train_epochs, 1),
            "--batch-size": (self.per_device_train_batch_size, 1),
            "--gradient-accumulation": (self.gradient_accumulation_steps, 1),
            "--max-length": (1 if self.model_max_length is None else self.model_max_length, 1),
            "--max-steps": (self.max_steps, 0),
            "--workers": (self.dataloader_num_workers, 0),
            "--save-every": (self.save_steps, 0),
            "save_total_limit": (self.save_total_limit, 1),
            "--eval-every": (self.eval_steps, 0),
            "--patience": (self.early_stopping_patience, 0),
        }
        for option, (number, least) in at_least.items():
            if number < least:
                raise UsageError(f"{option} is too small: {number}, expected {least} or more.")
        fractions = {
            "--learning-rate": 0.5 if self.learning_rate is None else self.learning_rate or -1.0,
            "--warmup-ratio": self.warmup_ratio,
            "--weight-decay": self.weight_decay,
            "adam_beta1": self.adam_beta1,
            "adam_beta2": self.adam_beta2,
        }
        for option, fraction in fractions.items():
            check_fraction(option, fraction)
        if not (self.max_grad_norm >= 0 and self.adam_epsilon > 0):
            raise UsageError("max_grad_norm is below 0, or adam_epsilon not above it.")
        if self.distill and not self.quantize_aware:
            raise UsageError(
                "--distill: the checkpoint that a run starts from says already what it says; what is learned "
                "are weights on a grid that say so too: --quantize-aware q4_0."
            )
        if self.quantize_aware and (self.fsdp or self.deepspeed is not None):
            raise UsageError(
                "--quantize-aware was never run with weights that --fsdp or --deepspeed divides. Leave these "
                "out."
            )
        if self.fsdp and self.deepspeed is not None:
            raise UsageError("--fsdp and --deepspeed both shard the model. Give one of them.")

    def warmup_of(self, steps: int) -> int:
        """Steps of the warm-up of so many; never all, as a run of one step would learn nothing."""
        return min(math.ceil(steps * self.warmup_ratio), steps - 1)


def check_fraction(option: str, value: float) -> None:
    """Refuse what is not within 0 to below 1; a rate of 0 is given as -1."""
    if not 0 <= value < 1:
        above = "above 0" if option.endswith("rate") else "0"
        raise UsageError(f"{option} is {max(value, 0)}, expected {above} to below 1.")
