"""The report of hub-check: its files, whose they are, and its tables."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import foreign_file, write_bytes, write_json

from .hub_released import SCORED, Record

REPORT = "report.json"


def write_report(folder: Path, options: Record, records: list[Record], *, complete: bool) -> Record:
    """Write it, or what there is of it yet; `options` as JSON has them."""
    report = {"options": options, "complete": complete, "checkpoints": records}
    write_json(folder / REPORT, report)
    write_bytes(folder / "report.md", ("\n".join(markdown_lines(report)) + "\n").encode())
    return report


def file_name(repository: str) -> str:
    """A checkpoint's name, as it stands in names of files."""
    return repository.replace("/", "--")


def report_mark(folder: Path) -> str:
    """Whether a directory is what this command wrote and nothing else: see `atomic_files.Mark`."""
    from tinyllava_edge.bundle import bundle_mark

    report = json.loads((folder / REPORT).read_bytes())
    if not isinstance(report, dict) or report.keys() != {"options", "complete", "checkpoints"}:
        return "has the report of something else"
    names = {file_name(record["repository"]) for record in report["checkpoints"]}
    for path in folder.glob("*--*.json"):
        record = json.loads(path.read_bytes())
        if file_name(record["repository"]) == path.stem:
            names.add(path.stem)
    bundles = [folder / "bundles" / name for name in names if (folder / "bundles" / name).is_dir()]
    known = {REPORT, "report.md", *(f"{name}.json" for name in names)}
    roots = [f"{bundle.relative_to(folder).as_posix()}/" for bundle in bundles]
    roots += [f"answers/{name}.{scored}." for name in names for scored in SCORED]
    fault = foreign_file(folder, lambda name: name in known or name.startswith(tuple(roots)))
    return fault or next(filter(None, map(bundle_mark, bundles)), "")


def packed_mark(path: Path) -> str:
    """Whether a file is such a directory, packed."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            names = archive.getnames()
    except (tarfile.TarError, EOFError) as error:
        return f"is no packed report ({error})"
    return "" if f"{names[0] if names else ''}/report.json" in names else "is no packed report"


def passed(record: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was exported, is equal to torch, and no figure is outside its bound."""
    verdicts = [row["verdict"] for result in record.get("scores", {}).values() for row in result["judged"]]
    return not record["error"] and bool(record["verify"]["passed"]) and "outside" not in verdicts


def markdown_lines(report: Record) -> Iterator[str]:
    """One row for each checkpoint, and one for each figure of a variant."""
    yield "# Released checkpoints, exported and checked"
    yield ""
    yield "| checkpoint | commit | against torch |"
    yield "|---|---|---|"
    for record in report["checkpoints"]:
        verdict = record["error"] or record["verify"]["verdict"]
        yield f"| {record['repository']} | {record.get('commit', '')[:12]} | {verdict} |"
    yield ""
    yield "| checkpoint | set | variant | score | published | difference, points | bound | |"
    yield "|---|---|---|---:|---:|---:|---:|---|"
    for record in report["checkpoints"]:
        for name, result in record.get("scores", {}).items():
            for row in result["judged"]:
                yield f"| {record['repository']} | {name} | {_figures(row)} |"


def _figures(row: Record) -> str:
    interval = "" if row["ci95"] is None else " [{:+.1f}, {:+.1f}] paired".format(*row["ci95"])
    cells = (
        row["variant"],
        f"{row['score']:.1f}",
        "" if row["published"] is None else f"{row['published']:.1f}",
        "" if row["difference"] is None else f"{row['difference']:+.1f}{interval}",
        "" if row["bound"] is None else f"{row['bound']:.1f}",
        row["verdict"],
    )
    return " | ".join(cells)
