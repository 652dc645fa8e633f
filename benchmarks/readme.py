"""Fill README's measured block: `python -m tinyllava_edge.benchmarks.readme`.

From benchmarks/results/*.json, each the report.json of one `bench`, so that no figure is typed by hand.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .report import markdown_lines

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->"


def measured_block(reports: Sequence[Path]) -> str:
    """Markdown of every report, in the order of the paths."""
    return "\n".join(line for path in reports for line in _lines(path)) + "\n"


def _lines(path: Path) -> Iterator[str]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    title, *rest = markdown_lines(record)
    yield f"#{title}"  # below README's own title
    yield from rest
    yield f"- Raw samples: benchmarks/results/{path.name}"
    yield ""


def filled(readme: str, block: str) -> str:
    """README with another measured block."""
    before, after = readme.split(BEGIN)
    return f"{before}{BEGIN}{block}{END}{after.split(END)[1]}"


def write_readme(root: Path = ROOT) -> None:
    """Rewrite README.md of the source tree."""
    path = root / "README.md"
    block = measured_block(sorted((root / "benchmarks" / "results").glob("*.json")))
    path.write_text(filled(path.read_text(encoding="utf-8"), block), encoding="utf-8")


if __name__ == "__main__":
    write_readme()
