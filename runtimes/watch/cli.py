"""The command `tinyllava-edge watch`."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllava_edge.command_options import NamedBundleArgument, with_settings
from tinyllava_edge.console import note, print_json
from tinyllava_edge.printable import printable
from tinyllava_edge.runtimes.cli_options import Settings

if TYPE_CHECKING:
    from .watching import Seen, Summary


@with_settings
def watch(
    bundle: NamedBundleArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|VIDEO|CAMERA|RTSP-URL",
            help="A folder for its new pictures, a video file, /dev/video0, or rtsp://HOST/PATH.",
        ),
    ],
    question: Annotated[str, typer.Argument(help="About each picture.")],
    settings: Settings,
    every: Annotated[float, typer.Option(help="Seconds between two questions, at least.", min=0)] = 0.0,
    changed: Annotated[
        float | None,
        typer.Option(
            metavar="D",
            help="Ask only where the picture differs from the last one asked about: by D of 255 on average, "
            "of 16 x 16 fields of grey. 3 is a little, 20 another scene.",
            min=0,
            max=255,
        ),
    ] = None,
    every_frame: Annotated[
        bool,
        typer.Option("--every-frame", help="Skip no frame of a file, no picture of a folder, however long."),
    ] = False,
    limit: Annotated[int, typer.Option(help="End after so many answers; 0 goes on.", min=0)] = 0,
) -> None:
    """Answer a question about the newest picture of a camera, a video or a folder, again and again.

    Ends with the video, after --limit, or on Ctrl-C, and says how many frames there were. Exit code 1 where a
    picture could not be read.
    """
    from tinyllava_edge.runtimes.bundle_by_name import open_named
    from tinyllava_edge.runtimes.cli import open_model

    from .sources import open_source
    from .watching import Watch

    how = settings.how()
    opened = open_source(source)  # a camera that is not there is said before the model comes
    try:
        found, settings = open_named(bundle, settings)
        with open_model(found, settings) as model:
            watched = Watch(
                model,
                opened,
                question,
                every_s=every,
                changed=changed,
                every_frame=every_frame,
                limit=limit or None,
                settings=how,
            )
            note(f"watching {opened.name}; Ctrl-C ends")
            try:
                for seen in watched:
                    _show(seen, as_json=settings.json)
            finally:
                watched.close()
                _sum_up(watched.summary, as_json=settings.json)
    finally:
        opened.close()
    raise typer.Exit(1 if watched.summary.failed else 0)


def _show(seen: "Seen", *, as_json: bool) -> None:
    if as_json:
        line = {**asdict(seen), "error": None if seen.error is None else str(seen.error)}
        if seen.logprobs is None:
            del line["logprobs"]
        print_json(line)
        return
    if seen.position_s is None:
        when = time.strftime("%H:%M:%S", time.localtime(seen.time_s))
    else:
        when = f"{seen.position_s:.2f} s"
    what = seen.picture or f"frame {seen.index}"
    if seen.error is not None:
        note(printable(f"failed: {seen.error}", line_ends=True), is_fault=True)
        return
    rates = "".join(
        f", {value:.1f} {name} a second"
        for name, value in (("frames", seen.fps_in), ("answers", seen.fps_answered))
        if value is not None
    )
    told = f"{when}, {what}: {seen.answer} ({seen.age_s:.2f} s old{rates}, {seen.skipped} skipped)"
    typer.echo(printable(told, line_ends=True))


def _sum_up(summary: "Summary", *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(summary))
        return
    others = (
        ("could not be read", summary.failed),
        ("as before", summary.unchanged),
        ("damaged", summary.damaged),
        ("reconnects", summary.reconnects),
    )
    more = "".join(f", {number:,} {name}" for name, number in others if number)
    note(
        f"{summary.frames:,} frames, {summary.answered:,} answered, {summary.skipped:,} skipped{more}, "
        f"{summary.seconds:.1f} s"
    )
