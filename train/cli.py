"""`tinyllava-edge train`."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, get_args

import typer

from tinyllava_edge.atomic_files import check_apart, pictures_read
from tinyllava_edge.command_options import ForceOption, JsonOption
from tinyllava_edge.console import note, print_json
from tinyllava_edge.errors import UsageError
from tinyllava_edge.record_check import print_report

from .asked import HINT, check_packages, read_asked
from .mix import DataFile, pair_files
from .options import PARTS, FinetuneOptions, LoraOptions, parse_tune, with_changes
from .parts import parse_budgets
from .ranks import first_tells, is_first
from .recipe import names, open_recipe
from .run import check_run, parts_directory
from .training_options import Attention, Grid, Precision, Report, Scheduler, TrainingOptions

_LORA, _DEFAULT = LoraOptions(), TrainingOptions()
_LENGTH = "Positions that are left of a conversation; the checkpoint's if not given."


def _known(names: object) -> str:
    return ", ".join(get_args(names))


@first_tells
def train(
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory of the new checkpoint.")
    ] = None,
    data: Annotated[list[Path] | None, typer.Option(help="LLaVA JSON; several, each with --images.")] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that its image paths are relative to; that of --data if not given."),
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(help="Weight of each --data, as 1,0.5: below 1 a share of it, above 1 repeated."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="Checkpoint to start from: a directory, 'nano', or a hub's owner/name."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help=f"Stage of a training: {', '.join(names())}; or a YAML file.")
    ] = None,
    tower: Annotated[
        str | None, typer.Option(help="In place of --from: a tower, a directory or a hub's owner/name.")
    ] = None,
    llm: Annotated[str | None, typer.Option(help="With --tower: a language model, likewise.")] = None,
    connector: Annotated[
        str | None, typer.Option(help="With --tower: type of the new connector between them; mlp2x_gelu.")
    ] = None,
    second_tower: Annotated[
        str | None, typer.Option(help="With --tower: DINOv2 beside a CLIP, joined by mof_mlp.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="With --llm: its tokenizer, where it has none of its own.")
    ] = None,
    feature_layer: Annotated[
        int | None, typer.Option(help="With --tower: of its hidden states; -2 if not given.")
    ] = None,
    feature_select: Annotated[
        str | None, typer.Option(help="With --tower: patch drops token 0, cls_patch keeps all.")
    ] = None,
    image_aspect_ratio: Annotated[
        str | None, typer.Option(help="With --tower: square, or pad to a square first.")
    ] = None,
    num_queries: Annotated[
        int | None, typer.Option(help="With --tower: rows of resampler and qformer; 128.")
    ] = None,
    connector_layers: Annotated[
        int | None, typer.Option(help="With --tower: of resampler (3) and qformer (12).")
    ] = None,
    connector_factor: Annotated[
        int | None,
        typer.Option(help="With --tower: avg_pool and pixel_shuffle make N x N patches one token; N, 2."),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Numbers of visual tokens that avg_pool learns at once, as 729,81,9; of a --from, "
            "mlp2x_gelu becomes it."
        ),
    ] = None,
    qformer_width: Annotated[
        int | None, typer.Option(help="With --tower: of qformer; 768. A multiple of 64.")
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            help=f"What is trained: {', '.join(PARTS)}, joined by +; or all. llm=lora, llm=qlora: low-rank "
            "updates. connector+llm if no recipe says it."
        ),
    ] = None,
    tower_from_layer: Annotated[
        int | None, typer.Option(help="Of a tower in --tune: its layers from this one on, counted from 0.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Prompt template, instead of the checkpoint's; `pretrain` for captions."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Times every conversation is seen.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Steps in all, instead of --epochs.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help=f"Conversations at once, of each process; {_DEFAULT.per_device_train_batch_size}."),
    ] = None,
    gradient_accumulation: Annotated[
        int | None, typer.Option("--gradient-accumulation", help="Batches of each process a step; 1.")
    ] = None,
    global_batch_size: Annotated[
        int | None, typer.Option(help="Conversations a step, of all processes, in the place of these.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest one; upstream's for the recipe if not given.")
    ] = None,
    llm_learning_rate: Annotated[
        float | None, typer.Option(help="Of the language model, or its LoRA.")
    ] = None,
    connector_learning_rate: Annotated[float | None, typer.Option(help="Of the connector.")] = None,
    tower_learning_rate: Annotated[float | None, typer.Option(help="Of the tower.")] = None,
    scheduler: Annotated[str | None, typer.Option(help=f"Course of the rates: {_known(Scheduler)}.")] = None,
    warmup_ratio: Annotated[
        float | None, typer.Option(help=f"Part of all steps, rounded up; {_DEFAULT.warmup_ratio}.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of matrices; 0.")] = None,
    group_by_modality_length: Annotated[
        bool | None,
        typer.Option(
            "--group-by-modality-length/--no-group-by-modality-length",
            help="Batches of one kind and about one length.",
        ),
    ] = None,
    max_length: Annotated[int | None, typer.Option(help=_LENGTH)] = None,
    lora_rank: Annotated[int | None, typer.Option(help=f"Of LoRA's update; {_LORA.rank}.")] = None,
    lora_alpha: Annotated[
        int | None, typer.Option(help=f"LoRA's update is scaled by alpha / rank; {_LORA.alpha}.")
    ] = None,
    lora_dropout: Annotated[
        float | None, typer.Option(help=f"On the input of LoRA's update; {_LORA.dropout}.")
    ] = None,
    save_adapter: Annotated[
        bool, typer.Option("--save-adapter", help="Keep the LoRA update by itself too, in adapter/.")
    ] = False,
    keep_adapter: Annotated[
        bool,
        typer.Option("--keep-adapter", help="With --tune llm=lora: write the updates alone, unmerged."),
    ] = False,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Go on from LoRA updates that --save-adapter kept: their directory."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Look at every record and picture, and train nothing.")
    ] = False,
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Show samples as the model gets them, and lengths; train nothing."),
    ] = False,
    samples: Annotated[int | None, typer.Option(min=1, help="With --preview: that are shown; 10.")] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Validation set, LLaVA JSON too.")] = None,
    eval_images: Annotated[
        Path | None, typer.Option(help="Its pictures; its own folder if not given.")
    ] = None,
    eval_every: Annotated[
        int, typer.Option(help="Steps between looks at it; 0 is once an epoch.")
    ] = _DEFAULT.eval_steps,
    patience: Annotated[
        int, typer.Option(help="Looks without a lower loss that end the run; 0: none.")
    ] = _DEFAULT.early_stopping_patience,
    report_to: Annotated[
        str | None, typer.Option(help=f"{_known(Report)}, joined by a comma; the log is written anyway.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what memory, steps and hours it takes, and train nothing.")
    ] = False,
    memory: Annotated[
        str | None, typer.Option(help="With --plan: of a device, as 24GB; this machine's own if not given.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(help="With --plan: what a device really computes; 100 is assumed.")
    ] = None,
    positions: Annotated[
        int | None,
        typer.Option(
            help="With --plan: of a conversation; the maximum length, the worst case, if not given."
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="With --plan: records, in place of --data.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="With --plan: processes, a device each; 1.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad records out, and say how many of what.")
    ] = False,
    save_every: Annotated[
        int, typer.Option(help="Steps between two snapshots; 0 takes none.")
    ] = _DEFAULT.save_steps,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same command.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of new weights, order and dropout; 0.")] = None,
    precision: Annotated[
        str | None, typer.Option(help=f"{_known(Precision)}; auto is bf16 where computed in.")
    ] = None,
    attention: Annotated[
        str, typer.Option(help=f"{_known(Attention)}; auto is sdpa.")
    ] = _DEFAULT.attn_implementation,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Less memory: activations are computed twice.",
        ),
    ] = None,
    quantize_aware: Annotated[
        str | None,
        typer.Option(
            help=f"Compute with weights as export will write them: {_known(Grid)} (tower and connector), "
            "joined by a comma."
        ),
    ] = None,
    distill: Annotated[
        bool | None,
        typer.Option(
            "--distill/--no-distill",
            help="With --quantize-aware: learn to say what the checkpoint says that is started from.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that prepare batches, of each process.")
    ] = _DEFAULT.dataloader_num_workers,
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
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Train a checkpoint on your own data."""
    opened = None if recipe is None else open_recipe(recipe)
    files = pair_files(data or [], images or [], mix) or ([] if opened is None else opened.mix)
    _refuse_given(preview, "preview", samples=samples)
    _refuse_given(plan, "plan", memory=memory, tflops=tflops, positions=positions, rows=rows, gpus=gpus)
    if not plan:
        _check_given(files, out, only_looks=check or preview)
    asked = read_asked(
        source,
        opened,
        {
            "llm": llm,
            "tower": tower,
            "second_tower": second_tower,
            "tokenizer": tokenizer,
            "connector": connector,
            "feature_layer": feature_layer,
            "feature_select": feature_select,
            "image_aspect_ratio": image_aspect_ratio,
            "num_queries": num_queries,
            "num_resampler_layers": connector_layers,
            "connector_factor": connector_factor,
            "token_budgets": None if budgets is None else parse_budgets(budgets),
            "qformer_width": qformer_width,
            "tune": None if tune is None else parse_tune(tune),
            "template": template,
            "rank": lora_rank,
            "alpha": lora_alpha,
            "dropout": lora_dropout,
            "num_train_epochs": epochs,
            "max_steps": max_steps,
            "per_device_train_batch_size": batch_size,
            "gradient_accumulation_steps": gradient_accumulation,
            "global_batch_size": global_batch_size,
            "learning_rate": learning_rate,
            "lr_scheduler_type": scheduler,
            "warmup_ratio": warmup_ratio,
            "weight_decay": weight_decay,
            "precision": precision,
            "attn_implementation": attention,
            "gradient_checkpointing": gradient_checkpointing,
            "model_max_length": max_length,
            "group_by_modality_length": group_by_modality_length,
            "dataloader_num_workers": workers,
            "seed": seed,
            "save_steps": save_every,
            "eval_steps": eval_every,
            "early_stopping_patience": patience,
            "quantize_aware": tuple(quantize_aware.split(",")) if quantize_aware else None,
            "distill": distill,
            "report_to": tuple(report_to.split(",")) if report_to else None,
            "fsdp": fsdp,
            "deepspeed": deepspeed,
            "processes": gpus,
        },
        sources=sources,
        allow_pickle=allow_pickle,
        weights=not (plan or preview),
    )
    asked = replace(asked, adapter=adapter)
    first, *more = files or [DataFile(path=Path(), images=Path())]
    options = FinetuneOptions(
        data=first.path,
        images=first.images,
        weight=first.weight,
        more=tuple(more),
        source=asked.start or parts_directory(out or Path()),
        parts=asked.parts,
        budgets=asked.budgets,
        tune=with_changes(
            asked.tune,
            from_layer=tower_from_layer,
            rates={
                "language_model": llm_learning_rate,
                "connector": connector_learning_rate,
                "vision_tower": tower_learning_rate,
            },
        ),
        recipe_name=recipe or "",
        template=asked.values.get("template"),
        lora=asked.lora,
        training=asked.training,
        eval_data=eval_data,
        eval_images=eval_images or (eval_data.parent if eval_data else None),
        save_adapter=save_adapter,
        keep_adapter=keep_adapter,
        adapter=adapter,
        sources=asked.sources,
        allow_pickle=allow_pickle,
    )
    if plan:
        from .plan import plan_run

        found = plan_run(
            options, rows=rows, processes=gpus, positions=positions, memory=memory, tflops=tflops
        )
        found.show(as_json=json)
        return
    if out is None or check or preview:
        _look(options, shown=(samples or 10) if preview else 0, as_json=json)
        return
    check_packages(options)
    check_apart(out, [pictures_read(file.images, file.path) for file in files])
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


def _check_given(files: list[DataFile], out: Path | None, *, only_looks: bool) -> None:
    if not files:
        raise UsageError(f"give --data my.json. {HINT}")
    if out is None and not only_looks:
        raise UsageError(
            "give -o DIR, the directory of the new checkpoint; --check, --plan and --preview need none."
        )


def _look(options: FinetuneOptions, *, shown: int, as_json: bool) -> None:
    """Check the data, or show some samples of them."""
    if shown:
        from .preview import preview_data, print_preview

        print_preview(preview_data(options, shown=shown), as_json=as_json)
        return
    from .check import check_data

    report = check_data(options)
    print_report(report, as_json=as_json)
    raise typer.Exit(int(bool(report.bad)))


def _refuse_given(is_there: bool, needed: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None and not is_there:
            raise UsageError(f"--{name} is of --{needed}.")
