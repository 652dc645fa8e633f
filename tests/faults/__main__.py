"""`python -m tests.faults`: each operation on the disk fails or kills; exit code 1 where it shows."""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.cases import CASES, write_sources
from tests.faults.strike import MODES, Row, strike_all, with_shim

_SCRATCH = "TINYLLAVA_EDGE_FAULTS"


def main() -> int:
    """Print the table of what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--mode", action="append", choices=list(MODES))
    parser.add_argument("--before", action="append", choices=["none", "old"], help="an output that was there")
    parser.add_argument(
        "--every", nargs="+", default=["1"], help="only every n-th operation: a number, or CASE=NUMBER ..."
    )
    parser.add_argument("--jobs", type=int, default=0, help="processes; as many as cores if not given")
    parser.add_argument(
        "--force-cases", action="store_true", help="print what --force refuses, and nothing else"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    asked = parser.parse_args()
    if asked.force_cases:
        from tests.faults.force_cases import main as print_force_cases

        return print_force_cases()
    if _SCRATCH not in os.environ:
        with tempfile.TemporaryDirectory(prefix="tinyllava-faults-") as folder:
            environment = {**with_shim(Path(folder)), _SCRATCH: folder}
            return subprocess.run(
                [sys.executable, "-m", "tests.faults", *sys.argv[1:]], env=environment
            ).returncode
    rows = _rows(asked, Path(os.environ[_SCRATCH]))
    if asked.json:
        print(json.dumps([vars(row) for row in rows]))  # noqa: T201
    else:
        _print(rows)
    return int(any(row.faults or row.left for row in rows))


def _rows(asked: argparse.Namespace, scratch: Path) -> list[Row]:
    from tests.fuzz.campaign import prepare

    prepare()
    fork = multiprocessing.get_context("fork")
    with fork.Pool(1) as pool:
        pool.apply(write_sources, (scratch / "source",))
    every = dict(word.rsplit("=", 1) if "=" in word else ("", word) for word in asked.every)
    tasks = [
        (name, before, mode, scratch, int(every.get(name) or every.get("") or 1))
        for name in asked.case or CASES
        for before in asked.before or ("none", "old")
        for mode in asked.mode or MODES
    ]
    with fork.Pool(asked.jobs or len(os.sched_getaffinity(0)), maxtasksperchild=1) as pool:
        return pool.map(_row, tasks, chunksize=1)


def _row(task: tuple[str, str, str, Path, int]) -> Row:
    name, before, mode, scratch, every = task
    own = Path(tempfile.mkdtemp(dir=scratch))
    return strike_all(name, before, mode, own, scratch / "source", every=every)


def _print(rows: list[Row]) -> None:
    heads = (
        "case",
        "before",
        "mode",
        "operations",
        "runs",
        "ended with",
        "as before",
        "new",
        "faults",
        "not cleared",
    )
    cells = [
        (
            *(row.case, row.before, row.mode, row.operations, row.runs),
            ", ".join(f"{count} x {code}" for code, count in sorted(row.ended.items())),
            *(row.older, row.newer, len(row.faults), len(row.left)),
        )
        for row in rows
    ]
    widths = [max(len(str(line[place])) for line in (heads, *cells)) for place in range(len(heads))]
    for line in (heads, *cells):
        print("  ".join(f"{cell!s:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())  # noqa: T201
    for row in rows:
        for text in (*row.faults[:5], *(f"not cleared: {left}" for left in row.left[:2])):
            print(f"{row.case}, {row.before}, {row.mode}: {text}")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
