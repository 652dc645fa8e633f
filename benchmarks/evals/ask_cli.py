"""The command `tinyllava-edge ask`: many pictures, an answer about each."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllava_edge.atomic_files import check_apart, check_output, pictures_read
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.command_options import BundleArgument, with_settings
from tinyllava_edge.console import note, print_json, progress
from tinyllava_edge.errors import UsageError
from tinyllava_edge.printable import printable
from tinyllava_edge.runtimes.cli_options import Settings

if TYPE_CHECKING:
    from tinyllava_edge.runtimes.model import Model

    from .ask_rows import Line, Row

_LINE_EVERY_S = 10.0


@with_settings
def ask(
    bundle: BundleArgument,
    settings: Settings,
    question: Annotated[
        str | None, typer.Argument(help="About every picture; with --input, of rows that have none.")
    ] = None,
    pictures: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PICTURE|FOLDER|URL|-]...", help="What to ask about; - is standard input."),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Look into folders of folders.")] = False,
    input: Annotated[
        Path | None,
        typer.Option(help="Rows {image, question, id}, or any file of questions that eval reads."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that names in --input are relative to.", show_default="that of the file"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write lines of JSON there, as they come.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the output of a run that ended.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="What cannot be asked is no failure: exit code 0.")
    ] = False,
) -> None:
    """Answer one question about each of many pictures, or each row of a file; `run` asks one about several.

    What fails ends nothing: it is named on stderr, its line has the reason, and the exit code is 1.
    """
    from tinyllava_edge.runtimes.bundle_by_name import open_named
    from tinyllava_edge.runtimes.cli import open_model

    from .ask_rows import depends_on, known_lines, lines_mark

    if resume and (output is None or force):
        raise UsageError("--resume goes on with the file of --output, and --force begins it anew: give one.")
    if output is not None:
        given = [Path(one) for one in pictures or () if os.path.exists(one)]
        check_apart(output, (bundle_path(bundle), input, pictures_read(images, input), *given))
        if not resume and not output.with_name(f"{output.name}.work.json").exists():
            check_output(output, force=force, mark=lines_mark)
    how = settings.how()
    rows = _rows(question, pictures or [], recursive, settings.allow_url, input, images)
    opened, settings = open_named(bundle, settings)
    with open_model(opened, settings, allow_url=settings.allow_url) as model:
        if output is None:
            asked = _ask(model, rows, how, {}, _printer(settings.json), bar=False)
            failed = sum(line["error"] is not None for line in asked)
            raise typer.Exit(1 if failed and not skip_bad else 0)
        from tinyllava_edge.append_jsonl import append_lines, kept_is_said

        with append_lines(
            output, depends_on(model, how), resume=resume, force=force, mark=lines_mark
        ) as file:
            known = known_lines(file, rows)
            with kept_is_said(file):
                lines = _ask(model, rows, how, known, file.append, bar=True)
            file.settle(lines)
            failed = sum(line["error"] is not None for line in lines)
            if skip_bad or not failed:
                file.finish()
    if settings.json:
        print_json({"output": str(output), "rows": len(rows), "failed": failed, "known": len(known)})
    if failed and not skip_bad:
        note("Mend them, and --resume asks those again; --skip-bad takes the file as it is.")
        raise typer.Exit(1)


def _rows(
    question: str | None,
    pictures: list[str],
    recursive: bool,
    allow_url: bool,
    file: Path | None,
    images: Path | None,
) -> "list[Row]":
    if file is not None:
        if pictures or recursive:
            raise UsageError("--input has the pictures: leave those of the command line out.")
        from .ask_rows import read_rows

        return read_rows(file, images, question)
    if images is not None:
        raise UsageError("--images goes with --input.")
    if question is not None and os.path.exists(question):
        raise UsageError(f"{question} is there as a file or folder, but the question comes first. Add one.")
    if question is None or not pictures:
        raise UsageError(
            "give a question and then pictures or folders, or --input FILE. (run asks without any.)"
        )
    from tinyllava_edge.runtimes.picture_arguments import picture_paths

    from .ask_rows import rows_of_pictures

    return rows_of_pictures(question, picture_paths(pictures, recursive=recursive, allow_url=allow_url))


def _ask(
    model: "Model",
    rows: "list[Row]",
    how: dict[str, Any],
    known: "dict[int, Line]",
    write: "Callable[[Line], None]",
    *,
    bar: bool,
) -> "list[Line]":
    """The lines of all rows, in order; those that are not known yet are written as they come."""
    from .ask_rows import line_of

    lines: list[Line] = []
    asked = [row for row in rows if row.index not in known and not row.error]
    answers = model.ask_each([row.question for row in asked], (row.picture for row in asked), **how)
    with _pace(len(rows), len(known), bar) as advance, closing(answers):
        for row in rows:
            line = known.get(row.index)
            if line is None:
                line = line_of(row, None if row.error else next(answers))
                write(line)
                advance(line)
            lines.append(line)
    return lines


@contextmanager
def _pace(total: int, known: int, is_bar: bool) -> "Iterator[Callable[[Line], None]]":
    """How far it is and how fast: a bar, or a line every ten seconds, and what fails; at the end, the sum."""
    done = failed = 0
    started = last = time.monotonic()

    def said() -> str:
        rate = done / max(time.monotonic() - started, 1e-9)
        return f"{known + done} of {total}, {failed} failed, {rate:.2f} a second"

    with progress() as bar:
        shows = is_bar and not bar.disable
        task = bar.add_task("ask", total=total, completed=known) if shows else None

        def advance(line: "Line") -> None:
            nonlocal done, failed, last
            done += 1
            if task is not None:
                bar.update(task, completed=known + done, description=f"ask, {said()}")
            if line["error"] is not None:
                failed += 1
                name = "" if str(line["picture"]) in line["error"] else f"{line['picture'] or line['id']}: "
                note(printable(f"failed: {name}{line['error']}", line_ends=True), is_fault=True)
            if task is None and time.monotonic() - last > _LINE_EVERY_S:
                last = time.monotonic()
                note(f"ask: {said()}")

        yield advance
    before = f", {known} known from before" if known else ""
    note(f"{said()}, {time.monotonic() - started:.1f} s{before}")


def _printer(as_json: bool) -> "Callable[[Line], None]":
    def show(line: "Line") -> None:
        if as_json:
            print_json(line)
        elif line["error"] is None:
            typer.echo(printable(f"{line['picture']}: {line['answer']}", line_ends=True))

    return show
