"""`tinyllava-edge verify --against`."""

from pathlib import Path

import typer

from tinyllava_edge.checkpoint.names import named_checkpoint
from tinyllava_edge.console import print_json, progress, stdout
from tinyllava_edge.errors import UsageError
from tinyllava_edge.printable import printable


def verify_against(
    files: list[Path],
    checkpoint: str | None,
    *,
    sources: Path | None,
    allow_pickle: bool,
    json: bool,
) -> None:
    """Find the first stage where files that we did not make differ from a checkpoint; code 1 where one does.

    Raises:
        UsageError: there is no checkpoint, or a file is not what it says.
    """
    if checkpoint is None:
        raise UsageError("--against holds files against a checkpoint: give --checkpoint too.")
    from .compare import compare_against, findings_table, kind_of, open_given  # torch

    for path in files:
        kind_of(path)
    opened = named_checkpoint(checkpoint, sources=sources, allow_pickle=allow_pickle)
    with progress() as bar:
        task = bar.add_task("read the checkpoint", total=len(files) + 1)
        given = open_given(opened)

        def on_file(name: str) -> None:
            bar.update(task, advance=1, description=name)

        report = compare_against(files, given, on_file)
    if json:
        print_json(report.to_json())
    else:
        stdout.print(printable(report.verdict, line_ends=True), soft_wrap=True, highlight=False)
        stdout.print(findings_table(report))
    if not report.passed:
        raise typer.Exit(1)
