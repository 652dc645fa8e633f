"""Fill README's measured block: `python -m tools.readme`.

One table and one picture, from benchmarks/results/*/report.json, each of one `bench`: no figure is typed
by hand.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import write_bytes
from tinyllava_edge.benchmarks.bench.compare import read_report
from tinyllava_edge.benchmarks.bench.figures import shown_cells
from tinyllava_edge.benchmarks.bench.pictures import CAPTIONS, draw_all, write_png
from tinyllava_edge.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->"
TABLE = (
    "| variant or rival | MB | KL | accuracy | first token | per token | end to end | ours / theirs |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
)
MEANING = """
One picture, one question, greedy, batch 1; medians in ms. *KL*: of the next token against torch float32,
in nats. *accuracy*: exact match on questions about things never trained. *ours / theirs*: time end to end
with its 95 % interval, below 1 ours is faster: in a row of ours over torch, in a rival's row of the variant
named, our fastest that is no farther from torch. A program that reads our files has its fastest row here.
"""
Record = dict[str, Any]


def find_reports(root: Path = ROOT) -> list[Path]:
    """The committed reports, in the order of their names."""
    paths = (root / RESULTS).glob("*/report.json")
    return sorted(path for path in paths if "kind" not in json.loads(path.read_bytes()))  # as an ablation's


def measured_block(reports: Sequence[Path]) -> str:
    """Markdown of all reports, in the order of the paths.

    Raises:
        DataError: one of them is none, or not whole.
    """
    if not reports:
        return f"No result is committed. `make bench` measures, and writes {RESULTS}/ and this part.\n"
    rows, notes = [], []
    for path in reports:
        record = read_report(path)
        try:
            rows += [f"| {' | '.join(row)} |" for row in _rows(path.parent.name, record)]
            notes += list(_notes(path, record))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: no whole report ({type(error).__name__} {error}). Measure again."
            ) from None
    drawn = [path.parent.name for path in reports if (path.parent / "choice.png").exists()]
    picture = [f"\n![{CAPTIONS['choice']}]({RESULTS}/{name}/choice.png)" for name in drawn[:1]]
    return "\n".join([*TABLE, *rows, MEANING, *notes, *picture]) + "\n"


def _rows(model: str, record: Record) -> Iterator[Sequence[str]]:
    """Ours, and behind them the rivals of the same report."""
    rivals = record.get("rivals") or {"rows": [], "accuracy": {}, "reference": ""}
    is_valid = bool(record["control_passed"].get("total_ms")) and not record.get("quick")
    over_torch = {
        one["cell"]: (1 / one["ratio"], 1 / one["high"], 1 / one["low"])
        for one in record["ratios"]
        if one["metric"] == "total_ms" and one["baseline"].startswith("torch")
    }
    for cell in shown_cells(record):
        ratio = _ratio_text(over_torch.get(cell["name"]), is_valid)
        beside = _kl(
            rivals, rivals["accuracy"].get(cell["name"])
        )  # where `verify` has not run: as rivals are
        kl = (cell["parity"] or {}).get("mean_kld", beside)
        yield (f"{model}: {cell['name']}", *_figures(cell, kl, cell["quality"]), ratio)
    for row in _fastest(rivals["rows"]):
        ratio = _against(record["cells"][0]["name"], rivals, row, is_valid)
        yield (f"{model}: *{row['name']}*", *_figures(row, _kl(rivals, row["accuracy"]), None), ratio)


def _fastest(rows: Sequence[Record]) -> Iterator[Record]:
    """Of each program that answers about a picture the row that is fastest end to end."""
    programs: dict[str, list[Record]] = {}
    for row in rows:
        if not row.get("language_only"):
            programs.setdefault(row["name"].split()[0], []).append(row)
    yield from (min(found, key=lambda row: row["warm"]["total_ms"]) for found in programs.values())


def _kl(rivals: Record, accuracy: Record | None) -> float | None:
    """Against torch; None where a row tells none, or was held against another."""
    return accuracy.get("mean_kld") if accuracy and "torch" in rivals["reference"].split() else None


def _figures(row: Record, kl: float | None, quality: Record | None) -> Sequence[str]:
    warm = row["warm"]
    return (
        f"{row['size_bytes'] / 1e6:.1f}",
        "-" if kl is None else f"{float(kl):.1e}",
        f"{quality['accuracy']:.3f}" if quality else "-",
        "-" if warm["first_token_ms"] is None else f"{warm['first_token_ms']:.1f}",
        f"{warm['token_ms']:.2f}",
        f"{warm['total_ms']:.1f}",
    )


def _against(first: str, rivals: Record, row: Record, is_valid: bool) -> str:
    """Time over a rival's: of our fastest variant that is as near to torch, or of our nearest one.

    Where a rival's distance is not known: of ours with its very language file, or of our first row.
    """
    theirs = _kl(rivals, row["accuracy"])
    known = {name: _kl(rivals, one) for name, one in rivals["accuracy"].items()}
    ours = {name: kl for name, kl in known.items() if kl is not None}
    if theirs is None:
        near = {name for name in known if name.endswith(f" + {row['name'].split()[-1]}")} or {first}
    else:
        ours.setdefault(rivals["reference"], 0.0)
        near = {name for name, kl in ours.items() if kl <= theirs}
    ratios = [one for one in rivals["ratios"] if (one["rival"], one["metric"]) == (row["name"], "total_ms")]
    by_distance = sorted(ratios, key=lambda one: ours.get(one["cell"], float("inf")))
    found = [one for one in ratios if one["cell"] in near] or by_distance[:1]
    if not found:
        return "-"
    best = min(found, key=lambda one: float(one["ratio"]))
    return f"{_ratio_text((best['ratio'], best['low'], best['high']), is_valid)} ({best['cell']})"


def _ratio_text(ratio: tuple[float, float, float] | None, is_valid: bool) -> str:
    if ratio is None:
        return "-"
    return "{:.2f} [{:.2f}, {:.2f}]".format(*ratio) if is_valid else "no claim"


def _notes(path: Path, record: Record) -> Iterator[str]:
    folder = f"{RESULTS}/{path.parent.name}"
    machine, request = record["machine"], record["request"]
    cpu = machine["cpu"]
    absent = [one["name"] for one in (record.get("rivals") or {"absent": []})["absent"]]
    yield (
        f"- {path.parent.name}: {request['num_tokens']} tokens, {_runs(record)} on {cpu['model']}, "
        f"{cpu['usable_cores']} cores, {machine['time_utc'][:10]}. "
        f"[All figures]({folder}/report.md), [every sample]({folder}/{path.name})."
        + (f" Not measured, for the reasons there: {', '.join(absent)}." if absent else "")
    )


def _runs(record: Record) -> str:
    """How many there are, which a bound may have made fewer than were asked for."""
    made = min(cell["warm"]["runs"] for cell in record["cells"])
    wanted, sessions = record["amount"]["runs"], record["amount"]["sessions"]
    said = f"{made} runs" if made == wanted else f"{made} of {wanted} runs ({record['partial']['why']})"
    return f"{said} in {sessions} session{'s' if sessions > 1 else ''}"


def draw_choice(path: Path) -> None:
    """Draw choice.png beside a report that has figures for it and no such picture."""
    if (path.parent / "choice.png").exists():
        return
    for name, figure in draw_all(read_report(path)):
        if name == "choice":
            write_png(figure, path.parent / "choice.png")


def filled(readme: str, block: str) -> str:
    """README with another measured block."""
    before, after = readme.split(BEGIN)
    return f"{before}{BEGIN}{block}{END}{after.split(END)[1]}"


def write_readme(root: Path = ROOT) -> None:
    """Rewrite README.md of the source tree."""
    path, reports = root / "README.md", find_reports(root)
    for report in reports:
        draw_choice(report)
    write_bytes(path, filled(path.read_text(encoding="utf-8"), measured_block(reports)).encode())


if __name__ == "__main__":
    write_readme()
