"""A comparison's record as Markdown, and all its files."""

import json
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import foreign_file, write_bytes
from tinyllava_edge.console import note
from tinyllava_edge.extras import install_line

from .compare import read_report
from .device_memory import LABELS
from .figures import METRICS, STAGES, STATES, Record, shown_cells
from .machine_load import busy_line
from .plot import draw_report

MOST_STITCHING = 1.03  # end to end over the raw calls, for a language model of 135 M parameters and more


def write_report(folder: Path, record: Record) -> None:
    """Write report.json, with the times of a run's tokens on one line, report.md and report.png.

    Without matplotlib there is no picture, and a line says what brings it.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False)
    text = re.sub(r"\[[\s\d.,e-]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    write_bytes(folder / "report.json", text.encode())
    (folder / "report.md").write_text("\n".join(markdown_lines(record)) + "\n", encoding="utf-8")
    if find_spec("matplotlib") is None:
        note(f"no plots, for which matplotlib is missing: {install_line('plots')}")
        return
    draw_report(folder / "report.png", record)


def report_mark(folder: Path) -> str:
    """Whether a directory is what `write_report` made and nothing else: see `atomic_files.Mark`."""
    read_report(folder / "report.json")
    return foreign_file(folder, {"report.json", "report.md", "report.png"}.__contains__)


def markdown_lines(record: Record, *, stages: bool = True) -> Iterator[str]:
    """The tables, with what they depend on below them; the one of the stages is long."""
    request, amount, cells = record["request"], record["amount"], shown_cells(record)
    yield f"# {', '.join(bundle['name'] for bundle in record['bundles'])}: the same request on every variant"
    yield ""
    for line in _warning_lines(record):
        yield f"**{line}**"
        yield ""
    yield (
        f'One picture, "{request["question"]}", {request["num_tokens"]} greedy tokens, batch 1. Medians of '
        f"{amount['runs']} runs in {amount['sessions']} sessions; ms unless said otherwise. Nothing is "
        "cached but where it says so."
    )
    yield ""
    yield from _table([_speed_row(record, cell) for cell in cells])
    yield ""
    yield from _table([_start_row(cell) for cell in cells])
    yield ""
    if stages:
        yield from _table([_stage_row(cell, state) for cell in cells for state in STATES if cell[state]])
        yield ""
    yield from (f"- {line}" for line in _notes(record))


def _warning_lines(record: Record) -> Iterator[str]:
    """What is said before any figure: that not all was done, or that nothing is claimed."""
    if record.get("quick"):
        yield "A quick look, which makes no claim: one session, hardly warmed up."
    if (partial := record.get("partial")) is None:
        return
    yield f"PARTIAL: {partial['why']}."
    for name, why in partial["failed"].items():
        yield f"{name} FAILED: {why}"
    if missing := [name for name in partial["not_measured"] if name not in partial["failed"]]:
        yield f"Not measured: {', '.join(missing)}."
    if short := {name: runs for name, runs in partial["runs"].items() if name not in partial["not_measured"]}:
        said = ", ".join(f"{name} {runs or 'only its warm-up'}" for name, runs in short.items())
        yield f"Runs, of {partial['wanted_runs']}: {said}."


def _speed_row(record: Record, cell: Record) -> dict[str, str]:
    """Speed beside size, parity and accuracy."""
    warm, parity, quality = cell["warm"], cell["parity"] or {}, cell["quality"]
    return {
        "cell": cell["name"],
        "MB": f"{cell['size_bytes'] / 1e6:.1f}",
        "KL": _or_dash(parity.get("mean_kld"), ".1e"),
        "top-1": _or_dash(parity.get("top1_agreement"), ".3f"),
        "accuracy (blind)": f"{quality['accuracy']:.3f} ({quality['blind_accuracy']:.3f})"
        if quality
        else "-",
        "end to end": f"{warm['total_ms']:.1f} +- {warm['total_ms_deviation']:.1f}",
        "p90": _or_dash(warm["total_ms_p90"], ".1f"),
        "speed": _speed(record, cell),
        "first token": f"{warm['first_token_ms']:.1f}",
        "per token": f"{warm['token_ms']:.2f}",
        "tokens/s": f"{warm['tokens_per_second']:.0f}",
        **_peaks(record, cell),
        "J/answer": _or_dash((cell.get("energy") or {}).get("whole_j"), ".2f"),
    }


def _peaks(record: Record, cell: Record) -> dict[str, str]:
    """The host's peak, and the GPU's beside it where there is one; older reports do not say."""
    host = f"{peak / 1e6:.0f}" if (peak := cell["peak_memory_bytes"]) else "-"
    if not (kind := record.get("device_memory")):
        return {"peak MB": host}
    device = cell["device_peak_bytes"]
    return {"host peak MB (VmHWM)": host, LABELS[kind]: "-" if device is None else f"{device / 1e6:.0f}"}


def _start_row(cell: Record) -> dict[str, str]:
    """What a start costs, and what everything around the libraries does."""
    cold, warm, cached = (cell[state] for state in STATES)
    cached = cached or {"total_ms": None, "first_token_ms": None}
    return {
        "cell": cell["name"],
        "load cold s": _or_dash(cell["load_cold_s"], ".2f"),
        "load warm s": f"{cell['load_warm_s']:.2f}",
        "first request": f"{cold['total_ms']:.1f} (x{cold['total_ms'] / warm['total_ms']:.2f})",
        "second question": _or_dash(cached["total_ms"], ".1f"),
        "its first token": _or_dash(cached["first_token_ms"], ".1f"),
        "prefill tokens/s": _or_dash(warm["prefill_tokens_per_second"], ".0f"),
        "stitching": _interval(cell["stitching"], 3) if cell["stitching"] else "-",
    }


def _stage_row(cell: Record, state: str) -> dict[str, str]:
    """Where the time goes: cold, warm or with a cached picture."""
    figures = cell[state]
    return {
        "cell": cell["name"],
        "picture": state,
        **{stage: _or_dash(figures["stages_ms"][stage], ".2f") for stage in STAGES},
        "first token": f"{figures['first_token_ms']:.2f}",
        "end to end": f"{figures['total_ms']:.2f}",
        "positions": str(figures["prompt_tokens"]),
        "reused": _or_dash(figures["reused_tokens"], ".0f"),
    }


def _table(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """The rows, without columns of dashes."""
    shown = [name for name in rows[0] if any(row[name] != "-" for row in rows)]
    yield f"| {' | '.join(shown)} |"
    yield "|---" + "|---:" * (len(shown) - 1) + "|"
    for row in rows:
        yield f"| {' | '.join(row[name] for name in shown)} |"


def _or_dash(value: float | str | None, form: str) -> str:
    return "-" if value is None else format(float(value), form)  # "nan" is a text in a result of `verify`


def _interval(ratio: Record, digits: int) -> str:
    return f"{ratio['ratio']:.{digits}f} [{ratio['low']:.{digits}f}, {ratio['high']:.{digits}f}]"


def _speed(record: Record, cell: Record) -> str:
    """The ratio, and the claim only where it may be made."""
    for ratio in record["ratios"]:
        if ratio["cell"] == cell["name"] and ratio["metric"] == "total_ms":
            valid = record["control_passed"].get("total_ms") and not record.get("quick")
            return f"{_interval(ratio, 2)} {ratio['verdict'] if valid else 'no claim'}"
    return "1" if cell["name"] == record["baseline"] else "-"


def _notes(record: Record) -> Iterator[str]:
    """What the figures mean and depend on."""
    yield (
        f"*speed*: times faster end to end than {record['baseline']}, with the 95 % interval of interleaved "
        "pairs. *per token*: mean after the first one (TPOT)."
    )
    yield f"*KL*, *top-1*: the next token's distribution against torch float32; {_parity_note(record)}"
    yield f"*accuracy (blind)*: {_accuracy_note(record['questions'])}"
    yield (
        "*first request*: of a new process (cold), and over the median (warm). *second question*: about the "
        "same picture, sent again (cached): its embeddings and the context up to its end are reused."
    )
    yield f"*stitching*: {_stitching_note(record)}"
    if kind := record.get("device_memory"):
        yield f"*{LABELS[kind]}*: {_DEVICE_NOTES[kind]}"
    if (power := record.get("power")) and power["whole"]:
        yield f"*J/answer*: {_energy_note(power)}"
    yield _control_line(record)
    if unsteady := [cell["name"] for cell in record["cells"] if not cell["same_answer_every_run"]]:
        yield f"The answer was not the same in every run: {', '.join(unsteady)}."
    if unstable := [cell["name"] for cell in record["cells"] if cell["unstable"]]:
        yield f"Unstable (runs deviate by more than a tenth from their median): {', '.join(unstable)}."
    if any(cell["load_cold_s"] is None for cell in record["cells"]) and not record.get("quick"):
        yield "Cold loads unknown: the files would not leave the page cache."
    yield from _machine_notes(record)


def _parity_note(record: Record) -> str:
    measured = [cell for cell in shown_cells(record) if cell["language"]]
    if any(cell["parity_passed"] is False for cell in measured):
        return "`verify` FAILED on this bundle."
    if missing := [cell["name"] for cell in measured if not cell["parity"]]:
        return f"not measured for {', '.join(missing)}: run `verify` on these very variants first."
    return "`verify` passed."


def _accuracy_note(questions: Record | None) -> str:
    if questions is None:
        return "not measured (give --questions and --images)."
    return (
        f"exact match on the {questions['questions']} questions about {questions['pictures']} pictures of "
        f"{questions['file']} (sha256 {questions['sha256'][:12]}...), and with mid-grey in their place."
    )


_DEVICE_NOTES = {
    "shared": "host and GPU share their memory; how far the available memory fell while the cell answered "
    "alone. What GPU allocations take is not in the host peak.",
    "card": "most that the card held for the cell's process while it answered alone; not in the host peak.",
}


def _energy_note(power: Record) -> str:
    idle = "unknown" if power["idle_whole_w"] is None else f"{power['idle_whole_w']:.2f} W"
    return (
        f"median energy from question to last token, read by {power['source']} of {power['whole']}. "
        f"Nothing is taken off; before the start, with nothing open, it was {idle}."
    )


def _stitching_note(record: Record) -> str:
    said = (
        "end to end over the sum of the request's own backend calls, made again with nothing around them; "
        f"at most {MOST_STITCHING} is wanted of language models from 135 M parameters on"
    )
    large = {b["name"] for b in record["bundles"] if b["parameters"]["language_model"] >= 130_000_000}
    measured = [cell for cell in record["cells"] if cell["stitching"] and cell["model"] in large]
    over = [cell["name"] for cell in measured if cell["stitching"]["ratio"] > MOST_STITCHING]
    return f"{said}. OVER IT: {', '.join(over)}." if over else f"{said}."


def _control_line(record: Record) -> str:
    ratios = {r["metric"]: r for r in record["ratios"] if r["cell"] == record["control"]}
    if not ratios:
        return f"A/A control ({record['control']}): not measured, so NO CLAIM IS VALID."
    total, first = (_interval(ratios[metric], 3) for metric in METRICS)
    said = f"A/A control ({record['control']}): end to end {total}, first token {first}"
    failed = [METRICS[metric] for metric, passed in record["control_passed"].items() if not passed]
    if not failed:
        return f"{said}; both include 1."
    return f"{said}; 1 is excluded: NO CLAIM IS VALID about {' and '.join(failed)}."


def _machine_notes(record: Record) -> Iterator[str]:
    machine, source = record["machine"], record["machine"]["source"]
    cores = f"{machine['cpu']['usable_cores']} cores usable"
    parts = (machine["cpu"]["model"], cores, *machine["gpus"], machine["system"])
    yield f"{', '.join(parts)}; {_load_note(record['load'])}"
    versions = [f"{name} {value}" for name, value in machine["versions"].items() if value]
    if source:
        versions.append(f"commit {source['commit'][:12]}{' with changes' if source['changed'] else ''}")
    yield ", ".join(versions)
    for bundle in record["bundles"]:
        yield f"{bundle['name']}: manifest sha256 {bundle['manifest_sha256']}"
    yield machine["time_utc"]


def _load_note(load: Record) -> str:
    loads = [load[when]["load_average_1_min"] for when in ("before", "after")]
    said = ["load unknown" if None in loads else f"load average {loads[0]:.1f} before, {loads[1]:.1f} after"]
    blocks: list[Any] = [block for session in load["blocks"] for block in session if block is not None]
    if blocks:
        said.append(f"{sum(b['disturbed'] for b in blocks)} of {len(blocks)} blocks disturbed by others")
    said += [f"{when}: {line}" for when in ("before", "after") if (line := busy_line(load[when]))]
    return "; ".join(said)
