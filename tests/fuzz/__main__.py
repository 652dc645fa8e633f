"""`python -m tests.fuzz`: hostile files for all that a command reads; exit code 1 where one gets through."""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import Campaign, build_apart, faults_by_place, run_campaign, table
from tests.fuzz.kinds import KINDS
from tests.fuzz.worker import FAULTS, damaged_input, read_input


def main() -> int:
    """Run the kinds that are asked for, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="inputs of each kind")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this one; may be repeated")
    parser.add_argument(
        "--index", type=int, help="only this input of --kind, in this process, with its error"
    )
    parser.add_argument("--timeout", type=float, default=30, help="seconds an input may take")
    parser.add_argument("--jobs", type=int, default=0, help="processes; as many as cores if not given")
    parser.add_argument("-o", "--out", type=Path, default=Path("fuzz-out"), help="where faults are kept")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    asked = parser.parse_args()
    kinds = asked.kind or list(KINDS)
    with tempfile.TemporaryDirectory(prefix="tinyllava-fuzz-") as folder:
        corpus = Path(folder, "corpus")
        corpus_sha256 = build_apart(corpus)
        if asked.index is not None:
            return _show(corpus, kinds[0], asked.seed, asked.index, Path(folder))
        campaign = Campaign(corpus, asked.seed, asked.count, asked.timeout, asked.jobs)
        outcomes = run_campaign(campaign, kinds)
        faults = [outcome for outcome in outcomes if outcome.outcome in FAULTS]
        for fault in faults:
            kind, place = KINDS[fault.kind], asked.out / fault.kind.replace(" ", "-") / str(fault.index)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            good = (corpus / kind.tree / kind.file).read_bytes()
            bad = damaged_input(kind, fault.kind, asked.seed, fault.index, good)
            (place / Path(kind.file).name).write_bytes(bad)
            (place / "error.txt").write_text(fault.detail, errors="replace")
    if asked.json:
        rows = table(outcomes)
        about = {"seed": asked.seed, "count": asked.count, "corpus_sha256": corpus_sha256}
        print(json.dumps({**about, "kinds": rows, "faults": [vars(fault) for fault in faults]}))  # noqa: T201
        return int(bool(faults))
    _print(table(outcomes), f"seed {asked.seed}, corpus {corpus_sha256[:16]}")
    for (name, outcome, where), indices in faults_by_place(faults):
        print(f"{name}: {outcome} {where}: inputs {', '.join(map(str, indices[:5]))} ({len(indices)})")  # noqa: T201
    if faults:
        print(f"files and errors: {asked.out}; again: --seed {asked.seed} --kind KIND --index INPUT")  # noqa: T201
    return int(bool(faults))


def _print(rows: dict[str, dict[str, int]], title: str) -> None:
    columns = list(next(iter(rows.values())))
    widths = [max(len(column), 6) for column in columns]
    print(f"{title:28}", *(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)))  # noqa: T201
    for name, row in rows.items():
        cells = (f"{row[column]:>{width}}" for column, width in zip(columns, widths, strict=True))
        print(f"{name:28}", *cells)  # noqa: T201


def _show(corpus: Path, name: str, seed: int, index: int, scratch: Path) -> int:
    found = read_input(corpus, name, seed, index, scratch)
    print(f"{found.outcome} {found.where}\n{found.detail}")  # noqa: T201
    return int(found.outcome in FAULTS)


if __name__ == "__main__":
    sys.exit(main())
