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

from .options import PARTS, FinetuneOptions, LoraOptions, Parts, Precision, RecipeName, parse_tune
from .run import check_run, parts_directory

_LORA = LoraOptions()


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
    batch_size: Annotated[int, typer.Option(help="Conversations a step.")] = 8,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest one; upstream's for the recipe if not given.")
    ] = None,
    lora_rank: Annotated[int, typer.Option(help="Of LoRA's update.")] = _LORA.rank,
    lora_alpha: Annotated[int, typer.Option(help="LoRA's update is scaled by alpha / rank.")] = _LORA.alpha,
    lora_dropout: Annotated[float, typer.Option(help="On the input of LoRA's update.")] = _LORA.dropout,
    save_adapter: Annotated[
        bool, typer.Option("--save-adapter", help="Keep the LoRA update by itself too, in adapter/.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Look at every record and picture, and train nothing.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad records out, and say how many of what.")
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps between two snapshots; 0 takes none.")] = 100,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same command.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of new weights, order and dropout.")] = 0,
    precision: Annotated[
        str, typer.Option(help=f"{', '.join(get_args(Precision))}; auto is bf16 where computed in.")
    ] = "auto",
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
        recipe=cast(RecipeName, recipe),
        tune=parse_tune(tune),
        template=template,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        lora=LoraOptions(rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout),
        seed=seed,
        precision=cast(Precision, precision),
        save_every=save_every,
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
    if json:
        print_json({"checkpoint": str(out), **outcome})
    else:
        note(
            f"{out}: {outcome['steps']} steps in {outcome['seconds']:.0f} s, loss "
            f"{outcome['first_loss']:.3f} -> {outcome['last_loss']:.3f}"
        )
