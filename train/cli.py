"""`tinyllava-edge train`."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from tinyllava_edge.atomic_files import check_apart, pictures_read
from tinyllava_edge.checkpoint.names import fetch_checkpoint, fetch_sources
from tinyllava_edge.console import note, print_json
from tinyllava_edge.errors import UsageError
from tinyllava_edge.record_check import print_report

from .options import PARTS, FinetuneOptions, LoraOptions, Parts, RecipeName, parse_tune, with_rates
from .ranks import first_tells, is_first
from .run import check_run, parts_directory
from .training_options import Attention, Precision, Report, Scheduler, TrainingOptions

_LORA, _DEFAULT = LoraOptions(), TrainingOptions()
_LENGTH = "Positions that are left of a conversation; the checkpoint's if not given."


def _known(names: object) -> str:
    return ", ".join(get_args(names))


@first_tells
def train(
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory of the new checkpoint.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="LLaVA JSON.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that its image paths are relative to; that of --data if not given."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="Checkpoint to start from: a directory, 'nano', or a hub's owner/name."),
    ] = None,
    tower: Annotated[Path | None, typer.Option(help="In place of --from: directory of a tower.")] = None,
    llm: Annotated[Path | None, typer.Option(help="With --tower: directory of a language model.")] = None,
    connector: Annotated[
        str, typer.Option(help="With --tower: type of the new connector between them.")
    ] = "mlp2x_gelu",
    recipe: Annotated[
        str, typer.Option(help=f"How the language model is trained: {', '.join(get_args(RecipeName))}.")
    ] = "full",
    tune: Annotated[
        str, typer.Option(help=f"What is trained: {', '.join(PARTS)}, joined by +; or all.")
    ] = "connector+llm",
    template: Annotated[
        str | None,
        typer.Option(help="Prompt template, instead of the checkpoint's; `pretrain` for captions."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Times every conversation is seen.")] = 1,
    max_steps: Annotated[int, typer.Option(help="Steps in all, instead of --epochs.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Conversations at once, of each process.")] = 8,
    gradient_accumulation: Annotated[
        int, typer.Option("--gradient-accumulation", help="Batches of each process a step.")
    ] = 1,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest one; upstream's for the recipe if not given.")
    ] = None,
    llm_learning_rate: Annotated[
        float | None, typer.Option(help="Of the language model, or its LoRA.")
    ] = None,
    connector_learning_rate: Annotated[float | None, typer.Option(help="Of the connector.")] = None,
    tower_learning_rate: Annotated[float | None, typer.Option(help="Of the tower.")] = None,
    scheduler: Annotated[
        str, typer.Option(help=f"Course of the rates: {_known(Scheduler)}.")
    ] = _DEFAULT.lr_scheduler_type,
    warmup_ratio: Annotated[
        float, typer.Option(help="Part of all steps, rounded up.")
    ] = _DEFAULT.warmup_ratio,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = _DEFAULT.weight_decay,
    group_by_modality_length: Annotated[
        bool,
        typer.Option("--group-by-modality-length", help="Batches of one kind and about one length."),
    ] = False,
    max_length: Annotated[int | None, typer.Option(help=_LENGTH)] = None,
    lora_rank: Annotated[int, typer.Option(help="Of LoRA's update.")] = _LORA.rank,
    lora_alpha: Annotated[int, typer.Option(help="LoRA's update is scaled by alpha / rank.")] = _LORA.alpha,
    lora_dropout: Annotated[float, typer.Option(help="On the input of LoRA's update.")] = _LORA.dropout,
    save_adapter: Annotated[
        bool, typer.Option("--save-adapter", help="Keep the LoRA update by itself too, in adapter/.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Look at every record and picture, and train nothing.")
    ] = False,
    eval_data: Annotated[Path | None, typer.Option(help="Validation set, LLaVA JSON too.")] = None,
    eval_images: Annotated[
        Path | None, typer.Option(help="Its pictures; its own folder if not given.")
    ] = None,
    eval_every: Annotated[int, typer.Option(help="Steps between looks at it; 0 is once an epoch.")] = 0,
    patience: Annotated[int, typer.Option(help="Looks without a lower loss that end the run; 0: none.")] = 0,
    report_to: Annotated[
        str | None, typer.Option(help=f"{_known(Report)}, joined by a comma; the log is written anyway.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad records out, and say how many of what.")
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps between two snapshots; 0 takes none.")] = 100,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same command.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of new weights, order and dropout.")] = 0,
    precision: Annotated[
        str, typer.Option(help=f"{_known(Precision)}; auto is bf16 where computed in.")
    ] = "auto",
    attention: Annotated[str, typer.Option(help=f"{_known(Attention)}; auto is sdpa.")] = "auto",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory: activations are computed twice.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches, of each process.")] = 0,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Shard the model over the processes of torchrun.")
    ] = False,
    deepspeed: Annotated[Path | None, typer.Option(help="DeepSpeed's configuration, JSON.")] = None,
    sources: Annotated[
        Path | None,
        typer.Option(help="Where tokenizer and processor files are that the checkpoint only names."),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .bin weights (with weights_only).")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Train a checkpoint on your own data."""
    if data is None or (source is None) == (tower is None) or (tower is None) != (llm is None):
        raise UsageError(
            "give --data my.json and either --from CHECKPOINT (a directory, nano or a hub's owner/name) or "
            "--tower DIR --llm DIR."
        )
    if out is None and not check:
        raise UsageError("give -o DIR, the directory of the new checkpoint; --check alone needs none.")
    parts = None if tower is None or llm is None else Parts(tower=tower, connector=connector, llm=llm)
    start = parts_directory(out or Path())
    if source is not None:
        start = fetch_checkpoint(source, allow_pickle=allow_pickle).path
        sources = fetch_sources(sources, start)
    options = FinetuneOptions(
        data=data,
        images=images or data.parent,
        source=start,
        parts=parts,
        tune=with_rates(
            parse_tune(tune, recipe),
            [
                ("language_model", llm_learning_rate),
                ("connector", connector_learning_rate),
                ("vision_tower", tower_learning_rate),
            ],
        ),
        template=template,
        lora=LoraOptions(rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout),
        training=TrainingOptions(
            num_train_epochs=epochs,
            max_steps=max_steps,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=gradient_accumulation,
            learning_rate=learning_rate,
            lr_scheduler_type=cast(Scheduler, scheduler),
            warmup_ratio=warmup_ratio,
            weight_decay=weight_decay,
            precision=cast(Precision, precision),
            attn_implementation=cast(Attention, attention),
            gradient_checkpointing=gradient_checkpointing,
            model_max_length=max_length,
            group_by_modality_length=group_by_modality_length,
            dataloader_num_workers=workers,
            seed=seed,
            save_steps=save_every,
            eval_steps=eval_every,
            early_stopping_patience=patience,
            report_to=cast(tuple[Report, ...], tuple(report_to.split(",")) if report_to else ()),
            fsdp=fsdp,
            deepspeed=deepspeed,
        ),
        eval_data=eval_data,
        eval_images=eval_images or (eval_data.parent if eval_data else None),
        save_adapter=save_adapter,
        sources=sources,
        allow_pickle=allow_pickle,
    )
    if out is None or check:
        from .check import check_data

        report = check_data(options)
        print_report(report, as_json=json)
        raise typer.Exit(int(bool(report.bad)))
    check_apart(out, (pictures_read(images, data),))
    check_run(out, resume=resume, force=force, sources=options.paths_read)
    # Idle OpenMP threads spin at every barrier, which costs all speed on a machine with other work.
    # Must be set before torch loads its OpenMP.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import torch

    from .finetune import finetune

    if threads:
        torch.set_num_threads(threads)
    outcome = asdict(finetune(out, options, resume=resume, force=force, skip_bad=skip_bad))
    if not is_first():
        return
    if json:
        print_json({"checkpoint": str(out), **outcome})
    else:
        note(
            f"{out}: {outcome['steps']} steps in {outcome['seconds']:.0f} s, loss "
            f"{outcome['first_loss']:.3f} -> {outcome['last_loss']:.3f}"
        )
