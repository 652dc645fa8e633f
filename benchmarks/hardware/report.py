"""The one report of a check: report.json and report.md, packed beside their directory."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import foreign_file, write_bytes, write_json

from .steps import FAILED, PASSED, SKIPPED

Record = dict[str, Any]
KIND = "hardware-check"
_FOLDERS = ("steps/", "logs/", "bench-", "peers/")


def write_report(folder: Path, record: Record) -> None:
    """Write both files; done after every step, so that a power cut leaves what there was."""
    write_json(folder / "report.json", record)
    write_bytes(folder / "report.md", ("\n".join(markdown_lines(record)) + "\n").encode())


def report_mark(folder: Path) -> str:
    """Whether a directory is what this command wrote and nothing else: see `atomic_files.Mark`."""
    record = json.loads((folder / "report.json").read_bytes())
    if not isinstance(record, dict) or record.get("kind") != KIND:
        return "has the report of something else"
    names = ("report.json", "report.md")
    return foreign_file(folder, lambda name: name in names or name.startswith(_FOLDERS))


def pack(folder: Path, packed: Path) -> None:
    """The directory in one file to send back, without the environments of peers."""

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "/peers/" in f"{entry.name}/" else entry

    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, folder.name, filter=kept)


def passed(record: Record) -> bool:
    """Whether nothing failed, and nothing that was required is missing."""
    return not record["missing"] and all(step["state"] != FAILED for step in record["steps"])


def markdown_lines(record: Record) -> Iterator[str]:
    """What was done, and each figure beside the registered one."""
    machine = record["machine"]
    yield "# Hardware check"
    yield ""
    jetson = machine["jetson"]
    board = (jetson["model"], f"L4T {jetson['l4t']}", f"power mode {jetson['power_mode']}") if jetson else ()
    yield ", ".join(map(str, (machine["cpu"]["model"], *machine["gpus"], *board, machine["system"])))
    yield ""
    for name, reason in record["missing"].items():
        yield f"REQUIRED AND MISSING: {name}: {reason}."
    steps = record["steps"]
    counts = [
        f"{sum(step['state'] == state for step in steps)} {state}" for state in (PASSED, FAILED, SKIPPED)
    ]
    yield ", ".join(counts) + "."
    yield ""
    yield "| step | state | seconds | why |"
    yield "|---|---|---:|---|"
    for step in steps:
        state = (
            step["state"] if step["has_run"] or step["state"] != SKIPPED else f"{step['state']}, not yet run"
        )
        yield f"| {step['name']} | {state} | {step['seconds']:.0f} | {_cell(step['reason'])} |"
    yield from _figure_lines(record["judged"])
    yield from _peer_lines(steps)


def _figure_lines(rows: list[Record]) -> Iterator[str]:
    unjudged: dict[str, list[str]] = {}
    for row in rows:
        title = f"{row['bench']}, {row['cell']}"
        if not row["figures"]:
            unjudged.setdefault(row["why_none"], []).append(title)
            continue
        yield from ("", f"## {title}, against what was registered before any run", "")
        yield "| figure | measured | expected | goal | of the roof | verdict |"
        yield "|---|---:|---:|---:|---:|---|"
        for figure in row["figures"]:
            yield f"| {' | '.join(_figure_cells(figure))} |"
        if row["energy"]:
            yield ""
            yield f"Energy of an answer: {row['energy']['whole_j']:.2f} J."
    if unjudged:
        yield ""
    for reason, titles in unjudged.items():
        yield f"- Not judged, as {reason}: {'; '.join(titles)}."


def _figure_cells(figure: Record) -> Iterator[str]:
    value, share = figure["measured"], figure["share_of_roof"]
    yield figure["title"]
    yield "-" if value is None else f"{value:.1f} {figure['unit']}"
    yield f"{figure['low']:.1f} to {figure['high']:.1f}"
    yield "-" if figure["goal"] is None else f"{figure['goal']:g}"
    yield "-" if share is None else f"{share:.0%}"
    yield figure["verdict"]


def _peer_lines(steps: list[Record]) -> Iterator[str]:
    found = [step for step in steps if step["name"].startswith("peer-") and step["result"]]
    if not found:
        return
    yield from (
        "",
        "| peer | model | prompt tokens | first token ms | tokens/s |",
        "|---|---|---:|---:|---:|",
    )
    for step in found:
        result = step["result"]
        times = (
            f"{result[key]:.1f}" if key in result else "-" for key in ("first_token_ms", "tokens_per_second")
        )
        about = (step["name"], str(result.get("model", "-")), str(result.get("prompt_tokens", "-")))
        yield f"| {' | '.join((*map(_cell, about), *times))} |"


def _cell(text: str) -> str:
    return text.replace("|", "/")
