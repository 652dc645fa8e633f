"""The command `tinyllava-edge ablate`."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllava_edge.atomic_files import check_apart
from tinyllava_edge.command_options import JsonOption
from tinyllava_edge.console import note, print_json, progress, stdout
from tinyllava_edge.errors import DataError, OutputExistsError, UsageError
from tinyllava_edge.work_places import held, is_unused

if TYPE_CHECKING:
    from tinyllava_edge.benchmarks.evals.commands import Record

    from .grid import Grid
    from .steps import Cell


def ablate(
    grid: Annotated[Path, typer.Argument(help="YAML with base, axes and eval.", metavar="GRID.yaml")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of trainings, answers and the report.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="List the cells and what each takes, and train nothing.")
    ] = False,
    max_cells: Annotated[int, typer.Option(min=1, help="That a grid may have.")] = 100,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in a folder, also after a change of the grid.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train and score every cell of a grid: one table and one plot, with intervals.

    A step that is done is not done again, and one that cells share is done once. A cell that fails is
    recorded, and does not end the others; the exit code is then 1, as where questions failed.
    """
    from tinyllava_edge.extras import install_line

    from .grid import read_grid
    from .report import markdown_lines
    from .steps import judge_reads, plan_cells

    found = read_grid(grid, max_cells=max_cells)
    if output is None and not plan:
        raise UsageError("give -o FOLDER, for trainings, answers and the report; --plan needs none.")
    if output is not None:
        _check_output(output, goes_on=resume or plan)
    cells = plan_cells(found, weights=not plan)
    trainings = {stage.key: stage for cell in cells for stage in cell.training.stages}
    if output is not None:
        read = [path for training in trainings.values() for path in training.reads]
        check_apart(output, (grid, *read, *judge_reads(found.judge)))
    note(f"{grid}: {len(cells)} cells, {len(trainings)} trainings")
    if plan or output is None:
        from .plan import show_plan

        show_plan(found, cells, output, as_json=json)
        return
    record = _run(found, cells, output)
    if json:
        print_json(record)
    else:
        stdout.print("\n".join(markdown_lines(record)), highlight=False, soft_wrap=True)
    note(f"written to {output}")
    if find_spec("matplotlib") is None:
        note(f"no plot, for which matplotlib is missing: {install_line('plots')}")
    if any(cell["error"] or cell["failed"] for cell in record["cells"]):
        raise typer.Exit(1)


def _check_output(output: Path, *, goes_on: bool) -> None:
    from .report import is_report

    if is_unused(output):
        return
    if not is_report(output):
        raise OutputExistsError(f"{output}: exists already, with no ablation in it. Choose another name.")
    if not goes_on:
        raise OutputExistsError(f"{output}: exists already. Give --resume to go on, or another name.")


def _run(grid: "Grid", cells: "Sequence[Cell]", output: Path) -> "Record":
    """Every cell, one after the other; the report is written after each."""
    from .report import failed_text, record_of, write_report
    from .runner import Runner

    errors: dict[str, str] = {}
    name = ""

    def report() -> "Record":
        record = record_of(grid, cells, runner, errors)
        write_report(output, record)
        return record

    with held(output), progress() as bar:
        task = bar.add_task("ablate", total=len(cells))
        runner = Runner(output / "steps", grid.judge, lambda s: bar.update(task, description=f"{name}: {s}"))
        record = report()
        (output / "steps").mkdir(exist_ok=True)
        for number, cell in enumerate(cells, start=1):
            name = f"cell {number} of {len(cells)}, {cell.name}"
            try:
                score = runner.score(cell)
                note(f"{name}: accuracy {score['accuracy']:.3f}{failed_text(len(score['failed']))}")
            except DataError as error:
                errors[cell.key] = str(error)
                note(f"{name}: failed: {error}", is_fault=True)
            record = report()
            bar.advance(task)
    return record
