"""The command `tinyllava-edge eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllava_edge.atomic_files import check_apart, pictures_read
from tinyllava_edge.checkpoint.names import bundle_path, checkpoint_path
from tinyllava_edge.command_options import AllowPickleOption, ContextOption, SourcesOption, ThreadsOption
from tinyllava_edge.console import print_json
from tinyllava_edge.errors import UsageError
from tinyllava_edge.export.options import parse_names
from tinyllava_edge.runtimes.cli_options import Opening
from tinyllava_edge.runtimes.registry import CPU_RUNTIME, choose_runtime, language_target

if TYPE_CHECKING:
    from tinyllava_edge.bundle import Bundle

    from .evaluation import Evaluation

_WHAT = (
    "give --questions and --images (and their --references, --rule), or --benchmark and --data (and its "
    "--limit)."
)


def evaluate(
    bundle: Annotated[
        str,
        typer.Argument(
            help="A bundle's directory, nano, owner/name of the hub, or a checkpoint's directory, which is "
            "exported once.",
            metavar="BUNDLE|CHECKPOINT",
        ),
    ],
    questions: Annotated[
        Path | None,
        typer.Option(help="JSON or a record a line: LLaVA's, {image, question, answer, type}, MME, MMBench."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that the image paths are relative to.")] = None,
    references: Annotated[
        list[Path] | None,
        typer.Option(help="File with the answers, where they stand apart; may be repeated."),
    ] = None,
    rule: Annotated[
        str, typer.Option(help="What is right: exact, scienceqa, pope, ...; told by the files by default.")
    ] = "",
    benchmark: Annotated[
        str | None,
        typer.Option(help="In the place of --questions, scored by its own rule: pope, textvqa, mmmu, ..."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the benchmark, as TinyLLaVA's own scripts have it.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Pictures of the benchmark; 0 takes all.")] = 0,
    runtime: Annotated[str, typer.Option(help="Runtimes, comma-separated.")] = CPU_RUNTIME,
    vision: Annotated[
        str, typer.Option(help="Vision variants, comma-separated, or 'all'; the most precise one by default.")
    ] = "",
    budgets: Annotated[
        str | None,
        typer.Option(help="Numbers of visual tokens, comma-separated, or 'all': each --vision at each."),
    ] = None,
    language: Annotated[
        str, typer.Option(help="Language variants, likewise; the first row is what the others differ from.")
    ] = "",
    checkpoint: Annotated[
        str | None,
        typer.Option(help="For runtime torch; by default where the bundle says it came from."),
    ] = None,
    sources: SourcesOption = None,
    allow_pickle: AllowPickleOption = False,
    blind: Annotated[
        bool | None,
        typer.Option(
            "--blind/--no-blind",
            help="Show mid-grey instead of the pictures, or never.",
            show_default="also, of one's own questions",
        ),
    ] = None,
    shard: Annotated[str, typer.Option(help="I/N: ask about every N-th picture, from the I-th on.")] = "",
    merge: Annotated[
        list[Path] | None,
        typer.Option(help="Ask nothing: take the answers of this file; repeated, of all shards."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of an answer.", show_default="16; a benchmark's: 128 or 1024"),
    ] = None,
    context_length: ContextOption = None,
    threads: ThreadsOption = None,
    answers: Annotated[
        Path | None, typer.Option(help="Write every answer to this JSONL file, as it comes.")
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(help="Write the file that the benchmark's judge or server takes, of the first variant."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the answers file of a run that ended.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what was written.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Ask nothing: open every picture, count every prompt, list what is bad."
        ),
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave what fails out of the score, in the place of wrong.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print only the line of JSON.")] = False,
) -> None:
    """Score short answers, with the blind score beside; the last line is JSON and names the rule.

    A benchmark is scored by its own rule, and asked blind only where --blind says so. Questions without
    answers are asked and written to --answers. A question that fails counts as wrong and is named; the exit
    code is then 1.
    """
    from tinyllava_edge.record_check import print_report
    from tinyllava_edge.runtimes.base import BackendOptions

    from .asked import read_benchmark, read_own
    from .cells import Wish, chosen_cells, named_bundles
    from .evaluation import Evaluation
    from .handed import check_handed, write_handed
    from .opened import open_asked
    from .shards import parse_shard

    part = parse_shard(shard)
    _check_alone(resume and (answers is None or force), bool(merge) and (part is not None or resume or check))
    given = () if checkpoint is None else (checkpoint_path(checkpoint),)
    read = (bundle_path(bundle), questions, pictures_read(images, questions), data, *given, sources)
    for written in filter(None, (answers, submission)):
        check_apart(written, (*read, *(references or ()), *(merge or ())))
    if submission is not None:
        check_handed(submission, benchmark, force=force)
    if benchmark and data and not (questions or images or references or rule):
        asked = read_benchmark(benchmark, data, limit).part(part)
    elif questions and images and not (benchmark or data or limit):
        asked = read_own(questions, images, references or (), rule).part(part)
    else:
        raise UsageError(_WHAT)
    reading = Opening(vision=vision, language=language, sources=sources, allow_pickle=allow_pickle)
    opened = open_asked(bundle, reading)
    most = max_tokens or asked.max_tokens
    if check:
        report = asked.looked(opened, most, context_length).check()
        print_report(report, as_json=json)
        raise typer.Exit(1 if report.bad else 0)
    wish = Wish(
        runtimes=parse_names(runtime),
        vision=parse_names(vision),
        budgets=parse_names(budgets or ""),
        language=parse_names(language) or _default_language(opened, parse_names(runtime)),
        checkpoints=given,
        options=BackendOptions(
            sources=sources, allow_pickle=allow_pickle, context_length=context_length, threads=threads
        ),
    )
    run = Evaluation(
        asked=asked,
        bundle=opened,
        cells=chosen_cells(named_bundles([opened]), wish),
        blind=blind,
        max_tokens=most,
        context_length=context_length,
        skip_bad=skip_bad,
    )
    run.check_is_kept(answers or submission)
    run.ask(answers, resume=resume, force=force, merge=merge or ())
    if submission is not None and benchmark:
        write_handed(submission, benchmark, run.said(), force=force)
    _say(run, bundle, shard, as_json=json)


def _say(run: "Evaluation", bundle: str, shard: str, *, as_json: bool) -> None:
    from .shown import print_results, summary

    result = summary(run, bundle, shard or None)
    if not as_json:
        print_results(result)
    run.name_failures()
    print_json(result)
    raise typer.Exit(1 if result["failed"] else 0)


def _check_alone(resumes_nothing: bool, merges_and_asks: bool) -> None:
    if resumes_nothing:
        raise UsageError("--resume goes on with the file of --answers, and --force begins it anew: give one.")
    if merges_and_asks:
        raise UsageError("--merge takes answers of the whole: without --shard, --resume and --check.")


def _default_language(bundle: "Bundle", runtimes: tuple[str, ...]) -> tuple[str, ...]:
    """The most precise variant that the first runtime reads."""
    target = language_target(choose_runtime(runtimes[0])) if runtimes else ""
    return (bundle.variant("language", target=target).name,)
