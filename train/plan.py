"""`train --plan`: what a run needs, before anything is downloaded or trained. docs/training.md#plan.

Weights, gradients and optimiser are counted; activations follow a law that two batches of the run's own step
are measured for, on tensors without memory (`fake_step`). Not counted: a program's own memory (Python, CUDA's
context), what an allocator loses to holes, and the pictures that wait.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinyllava_edge.checkpoint.config import ModelConfig
from tinyllava_edge.console import note, print_json, stdout
from tinyllava_edge.device import read_memory
from tinyllava_edge.errors import UsageError
from tinyllava_edge.model.assets import read_preprocessing
from tinyllava_edge.model.vlm import TinyLlava

from .check import described
from .fake_step import FakeStep, build_fake, take_step
from .lora import updated_layers
from .mix import draw
from .options import PARTS, FinetuneOptions
from .ranks import world_size
from .records import read_data
from .tuning import arithmetic, choose_trained, keep_frozen_in

_MEASURED = (2, 4)  # batches, that the law goes through
_ADAM = 8  # bytes of both moments of a weight, in float32
_ASSUMED_TFLOPS = 100.0  # a third of what an A100 is sold for; nobody measured it here
_NF4 = (
    0.516  # bytes of a weight in 4 bits, with its scales in 8 (Dettmers et al., arXiv 2305.14314, section 3)
)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(?P<number>\d{1,15}(?:\.\d{1,15})?)\s*(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device at the step's highest point.

    Attributes:
        weights: of each part, of what is frozen and of what is trained.
        buckets: copies of the gradients that several processes exchange.
        activations: all else: activations, copies in 16 bits, logits, what the optimiser takes for a moment.
    """

    weights: dict[str, int]
    gradients: int
    optimizer: int
    buckets: int
    activations: int

    @property
    def total(self) -> int:
        """Of all."""
        return sum(self.weights.values()) + self.gradients + self.optimizer + self.buckets + self.activations


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs; the fields of docs/json.md."""

    batch_size: int
    gradient_accumulation_steps: int
    processes: int
    precision: str
    positions: int
    picture_positions: int
    trained_parameters: dict[str, int]
    memory_bytes: dict[str, Any]
    activation_bytes_per_conversation: int
    largest_batch_size: int | None
    limit_bytes: int | None
    limit: str
    rows: int | None
    steps: int | None
    warmup_steps: int | None
    flops_per_conversation: int
    tflops: float
    tflops_assumed: bool
    device_hours: float | None

    def show(self, *, as_json: bool) -> None:
        """Print it on standard output."""
        if as_json:
            print_json(asdict(self))
            return
        for name, size in self._rows():
            stdout.print(f"{name:<45} {_gb(size):>10}", soft_wrap=True)
        for line in self._lines():
            stdout.print(line, soft_wrap=True)

    def _rows(self) -> Iterator[tuple[str, int]]:
        memory = self.memory_bytes
        yield from ((f"weights: {part}", size) for part, size in memory["weights"].items())
        yield "gradients", memory["gradients"]
        yield "optimiser", memory["optimizer"]
        if memory["buckets"]:
            yield "copies of gradients, to exchange", memory["buckets"]
        yield f"activations and temporary, {self.batch_size} at once", memory["activations"]
        yield "in all, of one device", memory["total"]

    def _lines(self) -> Iterator[str]:
        yield (
            f"one conversation more: {_gb(self.activation_bytes_per_conversation)}, at {self.positions} "
            f"positions, {self.picture_positions} of them a picture's, in {self.precision}"
        )
        if self.limit_bytes is not None:
            most = f"--batch-size {self.largest_batch_size} at most"
            yield f"{_gb(self.limit_bytes)} are there ({self.limit}): {most}"
        if self.steps is not None and self.device_hours is not None:
            yield f"{self.steps} steps over {self.rows} records, {self.warmup_steps} of them warm-up"
            assumed = "assumed, not measured; give --tflops" if self.tflops_assumed else "given"
            yield (
                f"{self.device_hours:.1f} hours of one device, at {self.tflops:g} TFLOP/s ({assumed}), "
                f"{self.flops_per_conversation / 1e12:.2f} TFLOP a conversation"
            )


class Law:
    """Memory of a step by the conversations at once, through two that were measured.

    Between two batches every operation's bytes grow in a line, so that the highest point may move from one
    operation to another.
    """

    def __init__(
        self, model: nn.Module, steps: Sequence[FakeStep], *, keeps_gradients: bool, cuda: bool
    ) -> None:
        trained = [parameter.numel() * 4 for parameter in model.parameters() if parameter.requires_grad]
        self.gradients, self._steps, self._keeps = sum(trained), steps, keeps_gradients
        self._largest = max(trained)
        # AdamW takes the roots of all second moments at once on a GPU, of one weight after another elsewhere.
        self._optimizer = self.gradients if cuda else 2 * self._largest

    def beyond_gradients(self, batch: int) -> int:
        """Bytes over weights, moments and gradients at the highest point of a step."""
        low, high = self._steps
        slope = (high.activations - low.activations) / (_MEASURED[1] - _MEASURED[0])
        activations = low.activations + slope * (batch - _MEASURED[0])
        if self._keeps:  # of the batches before, so that each new one is there for a moment
            peak = float(activations.max()) + self.gradients + self._largest
        else:
            peak = float((activations + low.gradients).max())
        return max(int(peak), self.gradients + self._optimizer) - self.gradients

    @property
    def per_conversation(self) -> int:
        """Bytes that one more conversation takes, among many."""
        return self.beyond_gradients(1001) - self.beyond_gradients(1000)


def plan_run(
    options: FinetuneOptions,
    *,
    rows: int | None = None,
    processes: int | None = None,
    **asked: Any,
) -> Plan:
    """Plan a run of `train`; its data are counted where they are given, and no weights are read.

    Args:
        options: of the run; without data, `data` is no file.
        rows: records, in the place of the data's.
        processes: those of torchrun if not given.
        asked: see `make_plan`.

    Raises:
        DataError: the data cannot be read.
        CheckpointError: what the checkpoint says of its parts is missing or damaged.
        UsageError: see `make_plan`.
    """
    if rows is None and options.data != Path():
        data = read_data(options)
        rows = len(draw(data.files, data.counts, options.training.seed))
    with described(options) as source:
        config, side = source.config, read_preprocessing(source).image_size
    asked = {"image_size": side, **asked}
    return make_plan(config, options, rows=rows, processes=processes or world_size(), **asked)


def make_plan(
    config: ModelConfig,
    options: FinetuneOptions,
    *,
    rows: int | None,
    processes: int = 1,
    image_size: int | None = None,
    positions: int | None = None,
    memory: str | None = None,
    tflops: float | None = None,
) -> Plan:
    """Count and measure what a run takes.

    Args:
        config: of the checkpoint that it starts from.
        options: of the run.
        rows: records of the data; None leaves out steps and hours.
        processes: devices, with a whole copy of the model each, or a part of one with `--fsdp`.
        image_size: of a picture, in pixels; None is the tower's own.
        positions: of each conversation, its picture's counted; None is the maximum length, the worst case.
        memory: of a device, as "24GB"; None is this machine's own.
        tflops: that a device really computes, in 1e12 operations a second; None is assumed.

    Raises:
        UsageError: a value is out of range, or the run is larger than `memory`: the message has the batch
            that fits.
    """
    training = options.training
    length = training.model_max_length or config.tokenizer_max_length
    positions = length if positions is None else positions
    side = image_size or config.vision.image_size
    picture = config.num_picture_tokens(side)
    if not picture < positions <= length:
        raise UsageError(
            f"--positions is {positions}, expected {picture + 1} (a picture and a token) to {length}."
        )
    if tflops is not None and not 0 < tflops < 1e6:
        raise UsageError(f"--tflops is {tflops}, expected above 0: 1e12 operations a second of one device.")
    limit_bytes, limit = _limit(memory)
    precision = _precision(options, elsewhere=memory is not None)
    note(f"a step of {_MEASURED[0]} and of {_MEASURED[1]} conversations on tensors without memory: seconds")
    model = build_fake(
        config,
        lambda model: _as_trained(model, options, precision),
        (lambda teacher: _as_frozen(teacher, precision)) if training.distill else None,
    )
    if training.gradient_checkpointing:
        model.checkpoint_activations()
    model.train()
    steps = [
        take_step(model, batch=batch, positions=positions, precision=precision, image_size=side)
        for batch in _MEASURED
    ]
    cuda = memory is not None or torch.cuda.is_available()
    law = Law(model, steps, keeps_gradients=training.gradient_accumulation_steps > 1, cuda=cuda)
    weights = _weights(model.model, options)
    for teacher in model.teachers:
        weights["teacher"] = _bytes(teacher)
    flops, speed = steps[1].flops // _MEASURED[1], tflops or _ASSUMED_TFLOPS
    batch = training.per_device_train_batch_size
    shards = processes if training.fsdp else 1
    found = _memory(law, weights, batch, processes, shards)
    plan = Plan(
        batch_size=batch,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        processes=processes,
        precision={None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[precision],
        positions=positions,
        picture_positions=picture,
        trained_parameters=_trained(model.model),
        memory_bytes={**asdict(found), "total": found.total},
        activation_bytes_per_conversation=law.per_conversation,
        largest_batch_size=_largest(law, weights, processes, shards, limit_bytes),
        limit_bytes=limit_bytes,
        limit=limit,
        rows=rows,
        **_course(options, rows, processes),
        flops_per_conversation=flops,
        tflops=speed,
        tflops_assumed=tflops is None,
        device_hours=None
        if rows is None
        else _conversations(options, rows, processes) * flops / speed / 3.6e15,
    )
    if limit_bytes is not None and found.total > limit_bytes:
        raise UsageError(_too_large(plan, found.total))
    return plan


def _as_trained(model: TinyLlava, options: FinetuneOptions, precision: torch.dtype | None) -> None:
    """As `finetune` does it; what is in 4 bits is as large as in 16 while it is computed with."""
    tune = {part: replace(t, how="lora") if t.how == "qlora" else t for part, t in options.tune.items()}
    choose_trained(model, replace(options, tune=tune, adapter=None))
    if precision is not None and not options.training.fsdp:
        keep_frozen_in(model, precision)


def _as_frozen(model: TinyLlava, precision: torch.dtype | None) -> None:
    model.requires_grad_(False)
    if precision is not None:
        keep_frozen_in(model, precision)


def _precision(options: FinetuneOptions, *, elsewhere: bool) -> torch.dtype | None:
    """Of another machine `auto` is bf16."""
    wanted = options.training.precision
    if wanted == "auto":
        wanted = "bf16" if elsewhere else arithmetic(options)  # type: ignore[assignment]
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(wanted)


def _weights(model: TinyLlava, options: FinetuneOptions) -> dict[str, int]:
    """Bytes of each part's weights and buffers; those in 4 bits as such."""
    counted: dict[str, int] = {}
    for part in PARTS.values():
        tuning = options.tune.get(part)
        in_4_bits: set[int] = set()
        if tuning is not None and tuning.how == "qlora":
            linear = updated_layers(getattr(model, part)).items()
            in_4_bits = {id(layer.weight) for name, layer in linear if "lora_" not in name}
        total = 0.0
        for tensor in (*getattr(model, part).parameters(), *getattr(model, part).buffers()):
            total += tensor.numel() * (_NF4 if id(tensor) in in_4_bits else tensor.element_size())
        counted[part] = int(total)
    return counted


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _trained(model: TinyLlava) -> dict[str, int]:
    return {
        part: sum(p.numel() for p in getattr(model, part).parameters() if p.requires_grad)
        for part in PARTS.values()
    }


def _memory(law: Law, weights: dict[str, int], batch: int, processes: int, shards: int) -> Memory:
    gradients = law.gradients // shards
    return Memory(
        weights={part: size // shards for part, size in weights.items()},
        gradients=gradients,
        optimizer=gradients * _ADAM // 4,
        buckets=gradients if processes > 1 and shards == 1 else 0,
        activations=law.beyond_gradients(batch),
    )


def _largest(law: Law, weights: dict[str, int], processes: int, shards: int, limit: int | None) -> int | None:
    """The most conversations at once that fit; 0 where not even one does."""
    if limit is None:
        return None

    def fits(batch: int) -> bool:
        return _memory(law, weights, batch, processes, shards).total <= limit

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _course(options: FinetuneOptions, rows: int | None, processes: int) -> dict[str, int | None]:
    """Steps of a run and of its warm-up, as transformers' Trainer counts them."""
    if rows is None:
        return {"steps": None, "warmup_steps": None}
    training = options.training
    batches = math.ceil(math.ceil(rows / processes) / training.per_device_train_batch_size)
    epoch = math.ceil(batches / training.gradient_accumulation_steps)
    steps = training.max_steps or epoch * training.num_train_epochs
    return {"steps": steps, "warmup_steps": training.warmup_of(steps)}


def _conversations(options: FinetuneOptions, rows: int, processes: int) -> int:
    """How many are trained on in all, each as often as it is."""
    training = options.training
    at_once = training.per_device_train_batch_size * training.gradient_accumulation_steps * processes
    return training.max_steps * at_once if training.max_steps else rows * training.num_train_epochs


def _limit(memory: str | None) -> tuple[int | None, str]:
    """Bytes of a device, and which one it is.

    Raises:
        UsageError: the text is no size.
    """
    if memory is not None:
        match = _SIZE.fullmatch(memory.strip())
        if match is None or not float(match["number"]):
            raise UsageError(f"--memory {memory!r} is no size. Give one as 24GB, 80GB or 16GiB.")
        unit = match["unit"].upper()
        scale = 1024 ** "_KMGT".index(unit) if match["binary"] and unit else _UNITS[unit]
        return int(float(match["number"]) * scale), f"--memory {memory}"
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free), f"free on {torch.cuda.get_device_name()}"
    found = read_memory()
    return (None, "not known here") if found is None else (found.available_bytes, "available on this machine")


def _too_large(plan: Plan, total: int) -> str:
    batch, limit = plan.largest_batch_size, plan.limit_bytes
    assert limit is not None
    said = (
        f"the run needs {_gb(total)} a device with --batch-size {plan.batch_size}, {_gb(limit)} are there "
        f"({plan.limit})."
    )
    if batch:
        whole = plan.batch_size * plan.gradient_accumulation_steps
        steps = f" --gradient-accumulation {whole // batch}" if whole % batch == 0 else ""
        return f"{said} The largest that fits: --batch-size {batch}{steps}."
    return (
        f"{said} Not even one conversation fits. Give --gradient-checkpointing, --recipe lora, a smaller "
        "--max-length, --fsdp on several devices, or a smaller model."
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
