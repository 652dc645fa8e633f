"""The command `tinyllava-edge explain`."""

from typing import TYPE_CHECKING, Annotated

import typer

from tinyllava_edge.checkpoint.names import bundle_path, named_checkpoint
from tinyllava_edge.command_options import (
    AllowPickleOption,
    AllowUrlOption,
    BundleArgument,
    JsonOption,
    SourcesOption,
    ThreadsOption,
)
from tinyllava_edge.console import print_json, progress, stdout
from tinyllava_edge.errors import UsageError
from tinyllava_edge.printable import printable
from tinyllava_edge.runtimes.registry import DEFAULT_RUNTIME, language_target

if TYPE_CHECKING:
    from .explain import Explanation, Side
    from .ladder import StageResult


def explain(
    bundle: BundleArgument,
    picture: Annotated[str, typer.Argument(help="A picture's file, a data URL, or - for standard input.")],
    question: Annotated[str, typer.Argument(help="What is asked about it.")],
    checkpoint: Annotated[
        str, typer.Option(help="The checkpoint that the bundle was made from, as for verify.")
    ],
    runtime: Annotated[str, typer.Option(help="Runtime that answers.")] = DEFAULT_RUNTIME,
    vision: Annotated[str | None, typer.Option(help="Vision variant; the most precise verified one.")] = None,
    language: Annotated[str | None, typer.Option(help="Language variant, likewise.")] = None,
    sources: SourcesOption = None,
    allow_pickle: AllowPickleOption = False,
    allow_url: AllowUrlOption = False,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Ask checkpoint and bundle one question: where they differ first, both answers, and the likely cause.

    Exit code 1 where a stage or the answers differ.
    """
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.runtimes.auto import settle_runtime
    from tinyllava_edge.runtimes.base import BackendOptions
    from tinyllava_edge.runtimes.picture_arguments import picture_content

    from .climb import open_checkpoint, opening_options, planned_stages
    from .explain import explain as explained
    from .ladder import Ladder
    from .reference_question import QuestionReference, room_behind
    from .stage_vision import is_run

    shown = picture_content(picture, allow_url=allow_url)
    opened = Bundle.open(bundle_path(bundle)).at_tokens(None, vision)
    settled = settle_runtime(runtime, opened)
    chosen = opened.variant("vision", vision or next(iter(settled.variants), None))
    if not is_run(chosen):
        raise UsageError(
            f"vision {chosen.name} is {chosen.status} here, so it answers nothing. Take another."
        )
    room = room_behind(opened, BackendOptions(threads=threads), question)
    given = named_checkpoint(checkpoint, sources=sources, allow_pickle=allow_pickle)
    ladder = Ladder(
        bundle=opened,
        reference=QuestionReference(
            open_checkpoint(opened, given),
            picture=shown,
            question=question,
            room=room,
        ),
        vision=(chosen,),
        language=(opened.variant("language", language, language_target(settled.runtime)),),
        runtime=settled.runtime,
        num_pictures=1,
        options=opening_options(given, threads),
    )
    with progress() as bar:
        task = bar.add_task("explain", total=len(planned_stages(ladder)), completed=-1)
        found = explained(ladder, lambda stage: bar.update(task, advance=1, description=f"explain {stage}"))
    if json:
        print_json(
            {**found.to_json(), "variants": {"vision": chosen.name, "language": ladder.language[0].name}}
        )
    else:
        _show(found)
    if not found.is_equal:
        raise typer.Exit(1)


def _show(found: "Explanation") -> None:
    """One screen."""
    lines = [found.verdict, f"prompt ids  {_prompt(found)}"]
    for name, side in (("checkpoint", found.checkpoint), ("bundle", found.bundle)):
        lines += [f"{name:<11} {side.text!r}" if side else f"{name:<11} no answer"]
        if side is not None and side.token is not None:
            lines.append(f"  token {found.parts_at}: {_sure(side)}")
    for result in found.report.results:
        lines.append(f"{result.stage:<14} {result.variant:<9} {_told(result)}")
    for line in lines:
        stdout.print(printable(line, line_ends=True), soft_wrap=True, highlight=False)


def _prompt(found: "Explanation") -> str:
    from .explain import first_difference

    size = f"{len(found.prompt_ids)} ids, {found.positions} positions with the picture"
    at = first_difference(found.prompt_ids, found.bundle_prompt_ids)
    return f"equal: {size}" if at is None else f"differ from index {at}: {size} for the checkpoint"


def _told(result: "StageResult") -> str:
    """Status, and the figure that decides: one that fails, else the first with a gate."""
    from .ladder import number

    if result.skipped:
        return f"-       {result.skipped}"
    check = next(iter(sorted(result.checks, key=lambda one: (one.passed, one.gate is None))), None)
    figure = f"{check.metric} {number(check.value)} {check.bound}" if check else ""
    return f"{'ok' if result.status == 'passed' else 'FAILED':<7} {figure}"


def _sure(side: "Side") -> str:
    return (
        f"{side.token!r} with p {side.probability:.3f}, the other's with {side.probability_of_other:.3f}, "
        f"best two logits {side.margin:.3g} apart"
    )
