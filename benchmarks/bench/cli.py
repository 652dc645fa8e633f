"""The commands `tinyllava-edge bench` and `tinyllava-edge bench compare`."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllava_edge.benchmarks.bench.peers.environments import HOME
from tinyllava_edge.checkpoint.names import bundle_path, checkpoint_path
from tinyllava_edge.command_options import (
    AllowPickleOption,
    AllowUrlOption,
    JsonOption,
    SourcesOption,
    ThreadsOption,
)
from tinyllava_edge.console import note, print_json, progress, stdout
from tinyllava_edge.errors import UsageError
from tinyllava_edge.export.options import parse_names

if TYPE_CHECKING:
    from .plan import Plan
    from .quality import Quality

_PERCENTILE_RUNS = 64
_QUICK_MIN = 2


def bench(
    bundles: Annotated[list[str], typer.Argument(help="Bundle directories, or 'nano'.", metavar="BUNDLE...")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory of the report to write.")
    ] = None,
    runtimes: Annotated[
        str,
        typer.Option(
            "--runtime",
            help="Runtimes, comma-separated, the one to compare with first; by default torch, where the "
            "checkpoint is here, and onnxruntime+llamacpp.",
        ),
    ] = "",
    vision: Annotated[
        str,
        typer.Option(
            help="Vision variants, comma-separated, or 'all'; the most precise one by default. "
            "Each is paired with every language variant; with 'all', as verify pairs them."
        ),
    ] = "",
    budgets: Annotated[
        str | None,
        typer.Option(help="Numbers of visual tokens, comma-separated, or 'all': each --vision at each."),
    ] = None,
    language: Annotated[str, typer.Option(help="Language variants, comma-separated; all by default.")] = "",
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="For runtime torch, once a bundle; by default where the bundle says it came from."),
    ] = None,
    sources: SourcesOption = None,
    allow_pickle: AllowPickleOption = False,
    picture: Annotated[
        str | None,
        typer.Option(
            help="Picture to ask about: a file, a data URL or - for standard input; one of the first "
            "bundle's own by default."
        ),
    ] = None,
    allow_url: AllowUrlOption = False,
    question: Annotated[str, typer.Option(help="What to ask.")] = "What is this?",
    second_question: Annotated[
        str, typer.Option(help="What to ask next about the same picture.")
    ] = "What colour is it?",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of every answer.")] = 64,
    runs: Annotated[
        int,
        typer.Option(
            min=2, help=f"Least runs of each row; {_PERCENTILE_RUNS} or more give a 90th percentile."
        ),
    ] = 24,
    sessions: Annotated[
        int, typer.Option(min=1, help="How often every process is started anew; the runs are shared out.")
    ] = 3,
    questions: Annotated[
        Path | None, typer.Option(help="Score every row with these questions too, as `eval` does.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the questions' pictures.")] = None,
    threads: ThreadsOption = None,
    growth: Annotated[
        bool,
        typer.Option(
            "--growth", help="Measure how time grows with visual tokens, text, pictures and context, too."
        ),
    ] = False,
    within: Annotated[
        float | None,
        typer.Option(min=0.1, help="Minutes after which it ends, with a report of what was done by then."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"A look that makes no claim: one session, within {_QUICK_MIN} minutes and one for each GB "
            "of the rows' weights.",
        ),
    ] = False,
    peers: Annotated[
        str,
        typer.Option(
            help="Rivals to measure in the same rounds, comma-separated, or 'all': `make peers` makes their "
            "environments. A row says what it cannot match; one that is missing says so."
        ),
    ] = "",
    peers_checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The model as transformers' LlavaForConditionalGeneration, for the rivals that read it; by "
            "default the bundle's own (export --interchange transformers), or where it came from."
        ),
    ] = None,
    peers_mmproj: Annotated[
        Path | None, typer.Option(help="Its vision tower for mtmd and llama-server; likewise.")
    ] = None,
    peers_home: Annotated[Path, typer.Option(help="Where `make peers` made the environments.")] = HOME,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing report.")] = False,
    json: JsonOption = False,
) -> None:
    """Compare runtimes and variants on the same request: time, parity, accuracy, size.

    Figures are shown as they are measured. What ends it early (--within, Ctrl-C, SIGTERM) leaves a report of
    what was done, and so does a row that fails: the others go on without it, and the exit code is 1.
    """
    from tinyllava_edge.atomic_files import check_output, pictures_read
    from tinyllava_edge.benchmarks.evals.cells import Wish, named_bundles
    from tinyllava_edge.benchmarks.evals.questions import read_questions
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.reference_tensors import reference_pictures
    from tinyllava_edge.runtimes.base import BackendOptions
    from tinyllava_edge.runtimes.picture_arguments import picture_file

    from .pace import Amount, bound_text
    from .peers.planned import with_rivals
    from .peers.rivals import Places, check_names
    from .plan import Plan, plan_cells, quick_plan
    from .quality import Quality
    from .report import report_mark
    from .worker import Request

    roots = [bundle_path(path) for path in bundles]
    if output is not None:
        read = (*roots, *map(checkpoint_path, checkpoint or ()), sources, questions)
        read = (*read, Path(picture) if picture else None, pictures_read(images, questions))
        check_output(output, force=force, mark=report_mark, sources=read)
    if (questions is None) != (images is None):
        raise UsageError("--questions and --images go together: give both, or none.")
    wish = Wish(
        runtimes=parse_names(runtimes),
        vision=parse_names(vision),
        budgets=parse_names(budgets or ""),
        language=parse_names(language),
        checkpoints=tuple(checkpoint_path(path) for path in checkpoint or ()),
        options=BackendOptions(sources=sources, allow_pickle=allow_pickle, threads=threads),
    )
    opened = named_bundles([Bundle.open(root) for root in roots])
    shown = reference_pictures(next(iter(opened.values())))[0] if picture is None else Path()
    plan = Plan(
        bundles=opened,
        cells=plan_cells(opened, wish),
        request=Request(
            picture=str(shown),
            question=question,
            second_question=second_question,
            num_tokens=tokens,
        ),
        amount=Amount(sessions=sessions, blocks=-(-runs // (2 * sessions))),
        roofline=True,
        growth=growth,
        within_s=None if within is None else 60 * within,
    )
    if quick:
        plan = quick_plan(plan, 60 * _QUICK_MIN)
        note(f"a quick look, which makes no claim: {bound_text(plan.within_s)}")
    quality = None
    if questions is not None and images is not None:
        quality = Quality(questions, images, read_questions(questions, images))
    places = Places(home=peers_home, checkpoint=peers_checkpoint, mmproj=peers_mmproj)
    rivals = check_names(parse_names(peers))
    with nullcontext(shown) if picture is None else picture_file(picture, allow_url=allow_url) as shown:
        plan = replace(plan, request=replace(plan.request, picture=str(shown)))
        with with_rivals(plan, rivals, places, wish) as whole:
            _measure(whole, quality, output, force=force, json=json)


def _measure(
    plan: "Plan", quality: "Quality | None", output: Path | None, *, force: bool, json: bool
) -> None:
    """Run the comparison, write its report where one is wanted, and print it."""
    from tinyllava_edge.atomic_files import output_directory
    from tinyllava_edge.device import read_machine
    from tinyllava_edge.image import open_picture
    from tinyllava_edge.parity_files import read_parity

    from .live import Live, kept_samples
    from .plan import check_memory
    from .record import run_plan
    from .report import markdown_lines, report_mark, write_report

    open_picture(Path(plan.request.picture))  # a bad one is said before anything else
    memory = read_machine().memory
    check_memory(plan, None if memory is None else memory.available_bytes)
    for name, bundle in plan.bundles.items():
        if not any(read_parity(bundle, cell.runtime) for cell in plan.cells if cell.model == name):
            note(f"no parity figures of {name}: run `tinyllava-edge verify {bundle.root}` first to have them")
    writing = nullcontext(None) if output is None else output_directory(output, force=force, mark=report_mark)
    about = {
        "bundles": list(plan.bundles),
        "request": asdict(plan.request),
        "cells": [row.name for row in plan.rows],
    }
    with writing as folder, kept_samples(output, about, force=force) as keep, progress() as bar:
        task = bar.add_task(
            "bench", total=plan.amount.visits(len(plan.cells)) + plan.amount.runs * len(plan.rivals)
        )
        asked = 0 if quality is None else len(quality.questions) * 2 * (len(plan.cells) - 1)
        asking = bar.add_task("questions", total=asked, visible=quality is not None)
        live = Live(note)

        def on_event(event: dict[str, Any]) -> None:
            keep(event)
            live(event)
            if event["event"] == "visit":
                bar.update(task, advance=1, description=f"bench {event['cell']}")

        record, stop = run_plan(plan, quality, on_event, lambda: bar.advance(asking), warn=note)
        if folder is not None:
            write_report(folder, record)
    if json:
        print_json(record)
    else:
        for line in markdown_lines(record):
            stdout.print(line, markup=False, highlight=False, soft_wrap=True)
        note("give -o DIR to keep the raw samples and the plot" if output is None else f"written to {output}")
    if stop is not None:
        raise stop
    if record["partial"] and (record["partial"]["failed"] or record["partial"]["error"]):
        raise typer.Exit(1)
