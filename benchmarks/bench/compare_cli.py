"""The command `tinyllava-edge bench compare`."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllava_edge.command_options import JsonOption
from tinyllava_edge.console import print_json, stdout
from tinyllava_edge.errors import UsageError

if TYPE_CHECKING:
    from .compare import CellComparison


def bench_compare(
    first: Annotated[Path, typer.Argument(help="Report of a bench: its directory, or its report.json.")],
    second: Annotated[Path, typer.Argument(help="The other report.")],
    force: Annotated[
        bool, typer.Option("--force", help="Compare although the environments are unlike.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare two reports row by row; refused where machine, versions, request or models are unlike.

    A patch of the kernel or of Python and a few per cent of memory are shown, and not refused.
    """
    from .compare import (
        compare_cells,
        differences,
        read_report,
        small_differences,
        source_difference,
        unmatched,
    )

    one, other = read_report(first), read_report(second)
    unlike, small = differences(one, other), small_differences(one, other)
    if unlike and not force:
        raise UsageError(
            f"{first} and {second} were not measured alike: {'; '.join(map(str, unlike))}. "
            "Give --force to compare them all the same."
        )
    compared = compare_cells(one, other)
    if not compared:
        raise UsageError(f"{first} and {second} have no cell in common: {', '.join(unmatched(one, other))}.")
    ours = source_difference(one, other)
    if json:
        print_json(
            {
                "unlike": [vars(difference) for difference in unlike],
                "hardly_unlike": [vars(difference) for difference in small],
                "source": None if ours is None else vars(ours),
                "cells": [{**asdict(cell), "verdict": cell.ratio.verdict} for cell in compared],
                "unmatched": unmatched(one, other),
            }
        )
        return
    lines = [f"first:  {first}", f"second: {second}", *comparison_lines(compared)]
    lines += [f"unlike: {difference}" for difference in (*unlike, *filter(None, [ours]))]
    lines += [f"hardly unlike: {difference}" for difference in small]
    if missing := unmatched(one, other):
        lines.append(f"in one of them only: {', '.join(missing)}")
    for line in lines:
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)


def comparison_lines(compared: "Iterable[CellComparison]") -> Iterator[str]:
    """Each row's name, and below it a line of at most 80 columns for each metric."""
    from .figures import METRICS

    yield "ms in the first and in the second; how many times faster the second is, with"
    yield "its 95 % interval"
    before = None
    for cell in compared:
        if cell.name != before:
            yield cell.name
        before, ratio = cell.name, cell.ratio
        interval = f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        yield (
            f"  {METRICS[cell.metric]:<11} {cell.first_ms:10.2f} {cell.second_ms:10.2f}  {interval:<22} "
            f"{ratio.verdict}"
        )
