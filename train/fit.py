"""One run of the Trainer: its arguments, its callbacks, and what it goes on from."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments

from tinyllava_edge.console import note, progress
from tinyllava_edge.errors import RecordError, UsageError

from .asked import check_packages
from .model import TinyLlavaForTraining
from .options import FinetuneOptions
from .ranks import is_first, world_size
from .run import truncate_log
from .samples import Samples
from .snapshots import newest_whole, step_of
from .trainer import TinyLlavaTrainer, resumed_from
from .training_log import JsonLines, TrainingLog
from .tuning import arithmetic, uses_fsdp
from .written import LOG_FILE, REPORTS

_FSDP = "--fsdp shards a model over several GPUs: start it there, with torchrun."


class Fitted(NamedTuple):
    """What came of it.

    Attributes:
        learned: what was trained, by its name in the `TinyLlava`; in the first process alone.
        steps: in all.
        resumed_at: step it went on from.
    """

    learned: dict[str, torch.Tensor]
    steps: int
    resumed_at: int


def fit(
    model: TinyLlavaForTraining,
    samples: Samples,
    validation: Samples | None,
    options: FinetuneOptions,
    work: Path,
) -> Fitted:
    """Train from the newest whole checkpoint in `work` to the end.

    Raises:
        DataError: the loss is not finite, or fp16's gradients overflow whatever they are scaled by.
        RecordError: a bad record was met; a checkpoint was taken before it.
        UsageError: the checkpoint is none of this run, a package is missing, or processes outnumber samples.
        DiskFullError: there is no room for a checkpoint.
    """
    training = options.training
    args = training_arguments(options, work, model.layer_classes, has_validation=validation is not None)
    if args.world_size > len(samples):
        raise UsageError(
            f"{args.world_size} processes, but {len(samples)} records: each process needs one a step. "
            "Start fewer processes, or give more data."
        )
    args.device  # noqa: B018 - sets up the devices
    if args.n_gpu > 1:
        note(
            f"{args.n_gpu} GPUs, one is used: torchrun --nproc-per-node {args.n_gpu} --no-python ... uses all"
        )
        args._n_gpu = 1
    checkpoint = newest_whole(work)
    if args.world_size > 1:
        torch.distributed.barrier()
    log = None
    if is_first():
        log = TrainingLog(work / LOG_FILE, truncate_log(work / LOG_FILE, step_of(checkpoint)))
    stop = (
        [EarlyStoppingCallback(training.early_stopping_patience)] if training.early_stopping_patience else []
    )
    with progress() as bar:
        trainer = TinyLlavaTrainer(
            model,
            samples,
            options,
            work,
            args=args,
            eval_dataset=validation,
            callbacks=[JsonLines(log, bar), *stop],
        )
        trainer.remove_callback(PrinterCallback)
        if uses_fsdp(options) and not trainer.is_fsdp_enabled:  # accelerate passes over it without a word
            raise UsageError(_FSDP)
        try:
            with resumed_from(checkpoint, trainer.steps):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except RecordError:
            trainer.save_now()
            raise
    learned = trainer.learned_state()
    return Fitted(learned, trainer.state.global_step, step_of(checkpoint))


def training_arguments(
    options: FinetuneOptions, work: Path, layer_classes: list[str], *, has_validation: bool
) -> TrainingArguments:
    """The library's arguments; what is not ours is at its default.

    `layer_classes` are what FSDP shards one by one.

    Raises:
        UsageError: a package that is asked for is missing.
    """
    training, precision = options.training, arithmetic(options)
    check_packages(options)
    if training.fsdp and world_size() == 1:
        raise UsageError(_FSDP)
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(work / REPORTS)
    looks: dict[str, Any] = {"eval_strategy": "no"}
    saves: dict[str, Any] = {
        "save_strategy": "steps" if training.save_steps else "no",
        "save_steps": training.save_steps or 1,
    }
    if has_validation:
        strategy = "steps" if training.eval_steps else "epoch"
        looks = {"eval_strategy": strategy, "eval_steps": training.eval_steps or None}
        if training.early_stopping_patience:  # the best model is one that was saved
            looks |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
            saves = {"save_strategy": strategy, "save_steps": training.eval_steps or 1}
    if training.fsdp:
        is_new = int(transformers.__version__.split(".")[0]) >= 5
        layers = {"version": 2, "transformer_layer_cls_to_wrap": layer_classes}
        looks |= {"fsdp": True if is_new else "full_shard auto_wrap", "fsdp_config": layers}
    values: dict[str, Any] = {
        "output_dir": str(work),
        "num_train_epochs": training.num_train_epochs,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "average_tokens_across_devices": True,
        "learning_rate": options.rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "max_grad_norm": training.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "tf32": True if training.tf32 else None,
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_num_workers": training.dataloader_num_workers,
        "dataloader_persistent_workers": training.dataloader_num_workers > 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "seed": training.seed,
        "deepspeed": str(training.deepspeed) if training.deepspeed else None,
        "ddp_find_unused_parameters": "vision_tower" in options.tune,  # layers behind the chosen one
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "prediction_loss_only": True,
        "report_to": list(training.report_to) or "none",
        "disable_tqdm": True,
        "log_level": "error",
        "log_level_replica": "error",
    }
    return TrainingArguments(**values, **looks, **saves)
