"""Fill README's measured block: `python -m tools.readme`.

From benchmarks/results/*/report.json, each of one `bench`, so that no figure is typed by hand.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tinyllava_edge.atomic_files import write_bytes
from tinyllava_edge.benchmarks.bench.compare import read_report
from tinyllava_edge.benchmarks.bench.report import markdown_lines
from tinyllava_edge.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->"


def find_reports(root: Path = ROOT) -> list[Path]:
    """The committed reports, in the order of their names."""
    return sorted((root / RESULTS).glob("*/report.json"))


def measured_block(reports: Sequence[Path]) -> str:
    """Markdown of every report, in the order of the paths."""
    if not reports:
        return f"No result is committed. `make bench` measures, and writes {RESULTS}/ and this part.\n"
    return "\n".join(line for path in reports for line in _lines(path)) + "\n"


def _lines(path: Path) -> Iterator[str]:
    try:
        title, *rest = markdown_lines(read_report(path), stages=False)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no whole report ({type(error).__name__} {error}). Measure again.") from None
    folder = f"{RESULTS}/{path.parent.name}"
    yield f"#{title}"  # below README's own title
    yield from rest
    yield f"- Every stage: [{folder}/report.md]({folder}/report.md), raw samples: {folder}/{path.name}"
    yield ""
    if (path.parent / "report.png").exists():
        yield f"![Stages, distribution of the runs, and speed with its interval]({folder}/report.png)"
        yield ""


def filled(readme: str, block: str) -> str:
    """README with another measured block."""
    before, after = readme.split(BEGIN)
    return f"{before}{BEGIN}{block}{END}{after.split(END)[1]}"


def write_readme(root: Path = ROOT) -> None:
    """Rewrite README.md of the source tree."""
    path = root / "README.md"
    block = measured_block(find_reports(root))
    write_bytes(path, filled(path.read_text(encoding="utf-8"), block).encode())


if __name__ == "__main__":
    write_readme()
