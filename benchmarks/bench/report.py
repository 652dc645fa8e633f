"""A comparison's record as Markdown, and all its files."""

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tinyllava_edge.atomic_files import foreign_file, write_bytes
from tinyllava_edge.console import note
from tinyllava_edge.extras import install_line

from .compare import read_report
from .figures import Record
from .notes import notes_of, title_of, warning_lines, what_was_asked
from .page import page_of
from .pictures import CAPTIONS, draw_all, svg_text, write_png
from .tables import Table, tables_of


def write_report(folder: Path, record: Record) -> None:
    """Write report.json, with the times of a run's tokens on one line, report.md, report.html and pictures.

    Without matplotlib there are no pictures, and a line says what brings it.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False)
    text = re.sub(r"\[[\s\d.,e-]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    write_bytes(folder / "report.json", text.encode())
    drawn: dict[str, str] = {}
    if find_spec("matplotlib") is None:
        note(f"no plots, for which matplotlib is missing: {install_line('plots')}")
    else:
        for name, figure in draw_all(record):
            write_png(figure, folder / f"{name}.png")
            drawn[name] = svg_text(name, figure)
    lines = [*markdown_lines(record), *(f"\n![{CAPTIONS[name]}]({name}.png)" for name in drawn)]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page_of(record, drawn), encoding="utf-8")


def report_mark(folder: Path) -> str:
    """Whether a directory is what `write_report` made and nothing else: see `atomic_files.Mark`."""
    read_report(folder / "report.json")
    pictures = {f"{name}.png" for name in CAPTIONS}
    return foreign_file(folder, {"report.json", "report.md", "report.html", *pictures}.__contains__)


def markdown_lines(record: Record) -> Iterator[str]:
    """The tables, with what they depend on below them."""
    yield f"# {title_of(record)}"
    yield ""
    for line in warning_lines(record):
        yield f"**{line}**"
        yield ""
    yield what_was_asked(record)
    yield ""
    for table in tables_of(record):
        yield from _table_lines(table)
        yield ""
    yield from (f"- {line}" for line in notes_of(record))


def _table_lines(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(table.columns)} |"
    yield "|---" + "|---:" * (len(table.columns) - 1) + "|"
    for row in table.rows:
        yield f"| {' | '.join(row[name] for name in table.columns)} |"
