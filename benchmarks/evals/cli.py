"""The command `tinyllava-edge eval`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tinyllava_edge.atomic_files import check_apart, pictures_read
from tinyllava_edge.checkpoint.names import bundle_path, checkpoint_path
from tinyllava_edge.console import note, print_json, stdout
from tinyllava_edge.errors import UsageError
from tinyllava_edge.export.options import parse_names
from tinyllava_edge.runtimes.cli_options import (
    AllowPickleOption,
    BundleArgument,
    ContextOption,
    SourcesOption,
    ThreadsOption,
)
from tinyllava_edge.runtimes.registry import CPU_RUNTIME, choose_runtime, language_target

if TYPE_CHECKING:
    from tinyllava_edge.bundle import Bundle

_WHAT = (
    "give --questions and --images (and their --references, --rule), or --benchmark and --data (and its "
    "--limit)."
)


def evaluate(
    bundle: BundleArgument,
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
        typer.Option(help="In the place of --questions, scored by its own rule: pope, textvqa, gqa, ..."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the benchmark, as TinyLLaVA's own scripts have it.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Pictures of the benchmark; 0 takes all.")] = 0,
    runtime: Annotated[str, typer.Option(help="Runtimes, comma-separated.")] = CPU_RUNTIME,
    vision: Annotated[
        str, typer.Option(help="Vision variants, comma-separated, or 'all'; the most precise one by default.")
    ] = "",
    language: Annotated[
        str, typer.Option(help="Language variants, likewise; the first row is what the others differ from.")
    ] = "",
    checkpoint: Annotated[
        str | None,
        typer.Option(help="For runtime torch; by default where the bundle says it came from."),
    ] = None,
    sources: SourcesOption = None,
    allow_pickle: AllowPickleOption = False,
    blind: Annotated[bool, typer.Option("--blind", help="Show mid-grey instead of the pictures.")] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer: 16, and 128 of a benchmark's.")
    ] = None,
    context_length: ContextOption = None,
    threads: ThreadsOption = None,
    answers: Annotated[
        Path | None, typer.Option(help="Write every answer to this JSONL file, as it comes.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the answers file of a run that ended.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the answers file.")] = False,
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
    from tinyllava_edge.benchmarks.bench.plan import Wish, named_bundles, plan_cells
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.record_check import print_report
    from tinyllava_edge.runtimes.base import BackendOptions

    from . import public_sets, scores
    from .evaluation import Evaluation, read_benchmark, read_own

    if resume and (answers is None or force):
        raise UsageError("--resume goes on with the file of --answers, and --force begins it anew: give one.")
    if answers is not None:
        given = None if checkpoint is None else checkpoint_path(checkpoint)
        read = (bundle_path(bundle), questions, pictures_read(images, questions), data, given, sources)
        check_apart(answers, (*read, *(references or ())))
    if benchmark and data and not (questions or images or references or rule):
        asked = read_benchmark(benchmark, data, limit)
    elif questions and images and not (benchmark or data or limit):
        asked = read_own(questions, images, references or (), rule)
    else:
        raise UsageError(_WHAT)
    opened = Bundle.open(bundle_path(bundle))
    most = max_tokens or (public_sets.MAX_TOKENS if asked.benchmark else scores.MAX_TOKENS)
    if check:
        report = asked.looked(opened, most, context_length).check()
        print_report(report, as_json=json)
        raise typer.Exit(1 if report.bad else 0)
    wish = Wish(
        runtimes=parse_names(runtime),
        vision=parse_names(vision),
        language=parse_names(language) or _default_language(opened, parse_names(runtime)),
        checkpoints=() if checkpoint is None else (checkpoint_path(checkpoint),),
        options=BackendOptions(
            sources=sources, allow_pickle=allow_pickle, context_length=context_length, threads=threads
        ),
    )
    run = Evaluation(
        asked=asked,
        bundle=opened,
        cells=plan_cells(named_bundles([opened]), wish)[:-1],
        blind=blind,
        max_tokens=most,
        context_length=context_length,
        skip_bad=skip_bad,
    )
    run.ask(answers, resume=resume, force=force)
    results = run.results()
    summary = {
        **{key: value for key, value in results[0].items() if key != "name"},
        "bundle": str(bundle),
        "manifest_sha256": opened.manifest_sha256,
        "benchmark": benchmark,
        "blind": blind,
        "images": scores.count_pictures(run.kept),
        **run.faults(),
        "variants": results,
    }
    if not json:
        is_scored = results[0]["rule"] is not None
        if is_scored:
            _print(results, benchmark)
        intervals = "" if asked.benchmark or not is_scored else "; 95 % intervals over pictures"
        note(f"{len(run.kept)} questions about {summary['images']} pictures{intervals}")
        _say_rule(summary)
    run.name_failures()
    print_json(summary)
    raise typer.Exit(1 if summary["failed"] else 0)


def _default_language(bundle: "Bundle", runtimes: tuple[str, ...]) -> tuple[str, ...]:
    """The most precise variant that the first runtime reads."""
    target = language_target(choose_runtime(runtimes[0])) if runtimes else ""
    return (bundle.variant("language", target=target).name,)


def _print(results: list[dict[str, Any]], benchmark: str | None) -> None:
    if benchmark is not None:
        table = Table("variant", benchmark, "questions")
        for result in results:
            unit = "" if result["rule"] == "mme" else " %"
            amount = f"{result['asked']} of {result['of']}"
            table.add_row(result["name"], f"{result['score']:.1f}{unit}", amount)
        stdout.print(table)
        return
    kinds = list(results[0]["types"])
    table = Table("variant", "accuracy", *kinds, "blind", "agrees with first", "difference")
    for result in results:
        against = result.get("against_first")
        table.add_row(
            result["name"],
            _interval(result["accuracy"], result["ci95"]),
            *(
                f"{_interval(value['accuracy'], value['ci95'])} blind {result['blind_types'][kind]:.3f}"
                for kind, value in result["types"].items()
            ),
            f"{result['blind_accuracy']:.3f}",
            "" if against is None else f"{against['agreement']:.3f}",
            "" if against is None else _interval(against["difference"], against["difference_ci95"], "+.3f"),
        )
    stdout.print(table)


def _say_rule(result: dict[str, Any]) -> None:
    if result["rule"] is not None:
        note(f"right is, by rule {result['rule']}: {result['right_is']}")
    if result["unscored"]:
        note(f"{result['unscored']} have no expected answer and no score; --references FILE gives them one")
    if unparsed := result.get("figures", result).get("unparsed"):
        note(f"{unparsed} answers name nothing that the rule reads, which counts as wrong")


def _interval(value: float, interval: Sequence[float], form: str = ".3f") -> str:
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"
