"""Train a checkpoint on the user's own conversations, and write it as a checkpoint that `export` reads."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tinyllava_edge.atomic_files import check_space, fsync, full_disk_named, output_directory, write_json
from tinyllava_edge.checkpoint.config import SIDECAR_FILE
from tinyllava_edge.checkpoint.files import read_json_object
from tinyllava_edge.checkpoint.names import NANO, is_shipped
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import note
from tinyllava_edge.errors import UsageError
from tinyllava_edge.model.vlm import TinyLlava, load_model
from tinyllava_edge.record_check import say_kinds
from tinyllava_edge.work_places import empty

from .assemble import assemble
from .check import Looker, known_bad
from .curve import write_curve
from .data import read_lines
from .left_out import left_out_before
from .loop import TrainingLog, choose_precision, conversation_loss, optimise
from .lora import add_lora, merge_lora, save_adapter
from .options import FinetuneOptions
from .records import Data, data_sha256, is_trained_on, read_data, refuse_bad
from .run import LOG_FILE, check_run, held_run, open_run, read_sidecar, remove_work, truncate_log
from .run_records import open_records
from .samples import Samples, open_samples, open_source
from .save import ADAPTER_FOLDER, CURVE_FILE, checkpoint_mark, stored_dtype, write_frame, write_weights
from .snapshots import Snapshots

_GRADIENT_NORM, _WARMUP_RATIO = 1.0, 0.03


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run did."""

    steps: int
    resumed_at: int  # step it went on from; `steps` where the output was there already
    first_loss: float
    last_loss: float
    seconds: float
    left_out: dict[str, int]  # records by kind of what is wrong with them


def finetune(
    out: Path, options: FinetuneOptions, *, resume: bool = False, force: bool = False, skip_bad: bool = False
) -> Outcome:
    """Train, and write the checkpoint; nothing is at `out` before all of it is.

    While it runs, log and snapshots are in `OUT.work`. On one machine with one number of threads, a resumed
    run gives the losses and weights of an uninterrupted one, bit for bit.

    Args:
        out: directory of the new checkpoint.
        options: what to train, on what, and how.
        resume: go on from the newest whole snapshot of an interrupted run, where there is one.
        force: replace an existing output, and without `resume` an unfinished run.
        skip_bad: leave bad records out, known ones before the first step, others when they are met.

    Raises:
        OutputExistsError: an output or an unfinished run is in the way.
        CheckpointError: the source is damaged or not supported.
        DataError: the data are malformed, pictures are missing, or the training diverged.
        RecordError: a bad record was met; a snapshot was taken before it.
        UsageError: the unfinished run is of other options or data, another process goes on with it, or `out`
            touches what is read.
        DiskFullError: there is no room for the checkpoint or a snapshot.
    """
    check_run(out, resume=resume, force=force, sources=options.paths_read)
    data = read_data(options)
    if not skip_bad:
        refuse_bad(data.bad, data, left_out_before(out) if resume else set())
    with held_run(out), _source_in_place(options):
        return _finetune(out, options, data, resume=resume, force=force, skip_bad=skip_bad)


@contextmanager
def _source_in_place(options: FinetuneOptions) -> Iterator[None]:
    """Assemble the checkpoint to start from, where it is given in parts; a resumed run makes the same one."""
    if options.parts is None:
        yield
        return
    parts = options.parts
    assemble(
        options.source,
        tower=parts.tower,
        connector=parts.connector,
        language_model=parts.llm,
        seed=options.training.seed,
    )
    try:
        yield
    finally:
        shutil.rmtree(options.source)


def _finetune(
    out: Path,
    options: FinetuneOptions,
    data: Data,
    *,
    resume: bool,
    force: bool,
    skip_bad: bool,
) -> Outcome:
    source = open_source(options, options.source)
    facts = _facts(options, source)
    if resume and is_trained_on(read_sidecar(out, facts), data):
        remove_work(out)
        return _outcome(out, read_lines(out / LOG_FILE)[-1]["step"])
    samples = open_samples(source, options)
    bad = known_bad(data, samples, options)
    if not skip_bad:
        refuse_bad(bad, data, left_out_before(out) if resume else set())
    model = load_model(source)
    accelerator = Accelerator(mixed_precision=_precision(options))
    model.to(accelerator.device)
    torch.manual_seed(options.training.seed)
    adapted = _choose_trained(model, options)
    work = open_run(out, facts, resume=resume, force=force)
    records, left_out = open_records(work, data, bad if skip_bad else (), Looker(samples), skip=skip_bad)
    samples.conversations, samples.left_out = records, left_out
    if left_out.counts:
        note(f"left out from the start: {say_kinds(left_out.counts)}")
    note(f"log and snapshots while it runs: {work}")
    stored = stored_dtype(source)
    needed = sum(parameter.numel() for parameter in model.parameters()) * stored.itemsize
    check_space(out, needed)
    with full_disk_named(work):
        first = samples.batch(0) if adapted is not None else None
        resumed_at = _optimise(model, samples, options, accelerator, work)
    merge_error = None
    with output_directory(out, force=force, mark=checkpoint_mark, needed=needed) as directory:
        if adapted is not None and first is not None:
            if options.save_adapter:
                save_adapter(adapted, directory / ADAPTER_FOLDER)
            merge_error = merge_lora(model, adapted, first)
        facts |= {
            "data": options.data.name,
            "data_sha256": data_sha256(records.data.hashes, left_out.hashes),
            "left_out": left_out.records,
            "merge_error": merge_error,
        }
        _write(model, directory, source, facts, work / LOG_FILE)
    empty(work)  # `held_run` removes it
    if left_out.counts:
        note(f"left out: {say_kinds(left_out.counts)} of {len(data)} records")
    return _outcome(out, resumed_at)


def _facts(options: FinetuneOptions, source: Checkpoint) -> dict[str, Any]:
    """What the outcome depends on, for the sidecar and to know a run again."""
    return {
        "recipe": options.recipe,
        "tune": list(options.tune),
        "training_template": options.template,
        "epochs": options.training.num_train_epochs,
        "batch_size": options.training.per_device_train_batch_size,
        "learning_rate": options.rate,
        "lora": asdict(options.lora) if options.recipe == "lora" else None,
        "seed": options.training.seed,
        "mixed_precision": _precision(options),
        "source": _source_name(options),
        "source_sha256": source.sha256,
    }


def _source_name(options: FinetuneOptions) -> str:
    if options.parts is not None:
        parts = options.parts
        return f"{parts.tower.resolve().name} + {parts.connector} + {parts.llm.resolve().name}"
    return NANO if is_shipped(options.source) else options.source.resolve().name


def _precision(options: FinetuneOptions) -> str:
    """Accelerate's name of the arithmetic; auto is bf16 where the GPU, or else the CPU, computes in it.

    Raises:
        UsageError: bf16 is asked for of a GPU that would only imitate it (compute capability below 8.0).
    """
    if not torch.cuda.is_available():
        return choose_precision(options.training.precision)
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if options.training.precision == "bf16" and not has_bf16:
        raise UsageError(
            f"--precision bf16: {torch.cuda.get_device_name()} does not compute in it (8.0 and newer do). "
            "Give fp32, or leave it to auto."
        )
    if options.training.precision == "auto":
        return choose_precision("bf16" if has_bf16 else "fp32")
    return choose_precision(options.training.precision)


def _choose_trained(model: TinyLlava, options: FinetuneOptions) -> Any:
    """Freeze all but what is trained; PEFT's wrapper where there are low-rank updates."""
    model.requires_grad_(False)
    full = set(options.tune)
    adapted = None
    if options.recipe == "lora":
        adapted = add_lora(model, options.lora)
        full.discard("language_model")
    for part in full:
        model.get_submodule(part).requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"nothing to train: {', '.join(options.tune)} has no weights in this checkpoint.")
    return adapted


def _optimise(
    model: TinyLlava, samples: Samples, options: FinetuneOptions, accelerator: Accelerator, work: Path
) -> int:
    """Run the optimiser from the newest snapshot to the end; the step it went on from."""
    snapshots = Snapshots(work, model, options.training.save_steps)
    seconds_before = truncate_log(work / LOG_FILE, snapshots.step)
    num_steps = samples.steps_per_epoch * options.training.num_train_epochs
    model.train()
    optimise(
        "finetune",
        torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=options.rate,
            betas=(0.9, 0.98),  # the memory of second moments that short runs need
            weight_decay=0.0,
        ),
        _losses(model, samples, range(snapshots.step, num_steps)),
        num_steps=num_steps,
        warmup_ratio=_WARMUP_RATIO,
        gradient_norm=_GRADIENT_NORM,
        accelerator=accelerator,
        log=TrainingLog(work / LOG_FILE, seconds_before, snapshots),
    )
    model.eval()
    return snapshots.step


def _losses(model: TinyLlava, samples: Samples, steps: range) -> Iterator[Callable[[], torch.Tensor]]:
    for step in steps:
        yield partial(conversation_loss, model, samples.batch(step))


def _write(model: TinyLlava, directory: Path, source: Checkpoint, facts: dict[str, Any], log: Path) -> None:
    """Fill the directory of the finished checkpoint."""
    dtype = stored_dtype(source)
    write_frame(source, directory, dtype)
    write_weights(model, directory, dtype)
    write_json(directory / SIDECAR_FILE, {"template": model.config.template, **facts})
    shutil.copy(log, directory / LOG_FILE)
    write_curve(log, directory / CURVE_FILE)
    for path in directory.rglob("*"):
        fsync(path)


def _outcome(out: Path, resumed_at: int) -> Outcome:
    lines = read_lines(out / LOG_FILE)
    left_out = read_json_object(out / SIDECAR_FILE)["left_out"]
    return Outcome(
        steps=lines[-1]["step"],
        resumed_at=resumed_at,
        first_loss=lines[0]["loss"],
        last_loss=lines[-1]["loss"],
        seconds=lines[-1]["seconds"],
        left_out=dict(Counter(record["kind"] for record in left_out)),
    )
