"""A comparison's record as Markdown, and all its files."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import write_bytes

from .machine_load import busy_line
from .plot import draw_report
from .record import METRICS, STAGES, STATES, Record

MOST_STITCHING = 1.03  # end to end over the raw calls, for a language model of 135 M parameters and more
Columns = tuple[tuple[str, list[str]], ...]


def write_report(folder: Path, record: Record) -> None:
    """Write report.json, report.md and report.png."""
    write_bytes(folder / "report.json", _json_text(record).encode())
    (folder / "report.md").write_text("\n".join(markdown_lines(record)) + "\n", encoding="utf-8")
    draw_report(folder / "report.png", record)


def _json_text(record: Record) -> str:
    """JSON with a line for each field, but the times of a run's tokens on one."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    return re.sub(r"\[[\s\d.,e-]+\]", lambda numbers: " ".join(numbers[0].split()), text)


def markdown_lines(record: Record, *, stages: bool = True) -> Iterator[str]:
    """The tables, with what they depend on below them; the one of the stages is long."""
    request, amount = record["request"], record["amount"]
    yield f"# {', '.join(bundle['name'] for bundle in record['bundles'])}: the same request on every variant"
    yield ""
    yield (
        f'One picture, "{request["question"]}", {request["num_tokens"]} greedy tokens, batch 1. Medians of '
        f"{amount['runs']} runs in {amount['sessions']} sessions; ms unless said otherwise. Nothing is "
        "cached but where it says so."
    )
    yield ""
    yield from table_lines(record)
    yield ""
    yield from start_lines(record)
    yield ""
    if stages:
        yield from stage_lines(record)
        yield ""
    yield from note_lines(record)


def table_lines(record: Record) -> Iterator[str]:
    """Speed beside size, parity and accuracy: one row for each cell but the control."""
    cells = shown_cells(record)
    columns: Columns = (
        ("cell", [cell["name"] for cell in cells]),
        ("MB", [f"{cell['size_bytes'] / 1e6:.1f}" for cell in cells]),
        ("KL", [_metric(cell["parity"], "mean_kld", ".1e") for cell in cells]),
        ("top-1", [_metric(cell["parity"], "top1_agreement", ".3f") for cell in cells]),
        ("accuracy (blind)", [_accuracy(cell["quality"]) for cell in cells]),
        ("end to end", [_with_deviation(cell["warm"]) for cell in cells]),
        ("p90", [_or_dash(cell["warm"]["total_ms_p90"], ".1f") for cell in cells]),
        ("speed", [_speed(record, cell) for cell in cells]),
        ("first token", [f"{cell['warm']['first_token_ms']:.1f}" for cell in cells]),
        ("per token", [f"{cell['warm']['token_ms']:.2f}" for cell in cells]),
        ("tokens/s", [f"{cell['warm']['tokens_per_second']:.0f}" for cell in cells]),
        ("peak MB", [f"{cell['peak_memory_bytes'] / 1e6:.0f}" for cell in cells]),
    )
    yield from _table(columns)


def start_lines(record: Record) -> Iterator[str]:
    """What a start costs, and what everything around the libraries does."""
    cells = shown_cells(record)
    columns: Columns = (
        ("cell", [cell["name"] for cell in cells]),
        ("load cold s", [_or_dash(cell["load_cold_s"], ".2f") for cell in cells]),
        ("load warm s", [f"{cell['load_warm_s']:.2f}" for cell in cells]),
        ("first request", [_first_request(cell) for cell in cells]),
        ("second question", [f"{cell['cached']['total_ms']:.1f}" for cell in cells]),
        ("its first token", [f"{cell['cached']['first_token_ms']:.1f}" for cell in cells]),
        ("prefill tokens/s", [f"{cell['warm']['prefill_tokens_per_second']:.0f}" for cell in cells]),
        ("stitching", [_interval(cell["stitching"], 3) for cell in cells]),
    )
    yield from _table(columns)


def stage_lines(record: Record) -> Iterator[str]:
    """Where the time goes, cold, warm and with a cached picture: three rows for each cell."""
    rows = [(cell, state, cell[state]) for cell in shown_cells(record) for state in STATES]
    columns: Columns = (
        ("cell", [cell["name"] for cell, _, _ in rows]),
        ("picture", [state for _, state, _ in rows]),
        *((stage, [f"{figures['stages_ms'][stage]:.2f}" for _, _, figures in rows]) for stage in STAGES),
        ("first token", [f"{figures['first_token_ms']:.2f}" for _, _, figures in rows]),
        ("end to end", [f"{figures['total_ms']:.2f}" for _, _, figures in rows]),
        ("positions", [str(figures["prompt_tokens"]) for _, _, figures in rows]),
        ("reused", [str(figures["reused_tokens"]) for _, _, figures in rows]),
    )
    yield from _table(columns)


def shown_cells(record: Record) -> list[Record]:
    """All cells but the control."""
    return [cell for cell in record["cells"] if cell["name"] != record["control"]]


def _table(columns: Columns) -> Iterator[str]:
    shown = [(name, values) for name, values in columns if name == "cell" or set(values) != {"-"}]
    yield f"| {' | '.join(name for name, _ in shown)} |"
    yield "|---" + "|---:" * (len(shown) - 1) + "|"
    for row in zip(*(values for _, values in shown), strict=True):
        yield f"| {' | '.join(row)} |"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _metric(parity: dict[str, float] | None, name: str, form: str) -> str:
    return _or_dash((parity or {}).get(name), form)


def _accuracy(quality: Record | None) -> str:
    if quality is None:
        return "-"
    return f"{quality['accuracy']:.3f} ({quality['blind_accuracy']:.3f})"


def _with_deviation(figures: Record) -> str:
    return f"{figures['total_ms']:.1f} +- {figures['total_ms_deviation']:.1f}"


def _first_request(cell: Record) -> str:
    """What the first request of a process takes, and how many times that of a later one."""
    cold = cell["cold"]["total_ms"]
    return f"{cold:.1f} (x{cold / cell['warm']['total_ms']:.2f})"


def _interval(ratio: Record | None, digits: int = 2) -> str:
    if ratio is None:
        return "-"
    return f"{ratio['ratio']:.{digits}f} [{ratio['low']:.{digits}f}, {ratio['high']:.{digits}f}]"


def _speed(record: Record, cell: Record) -> str:
    """The ratio, and the claim only where it may be made."""
    for ratio in record["ratios"]:
        if ratio["cell"] == cell["name"] and ratio["metric"] == "total_ms":
            verdict = ratio["verdict"] if record["control_passed"]["total_ms"] else "no claim"
            return f"{_interval(ratio)} {verdict}"
    return "1"


def note_lines(record: Record) -> Iterator[str]:
    """What the figures mean and depend on, as a list."""
    yield from (f"- {line}" for line in _notes(record))


def _notes(record: Record) -> Iterator[str]:
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
    yield _control_line(record)
    if unsteady := [cell["name"] for cell in record["cells"] if not cell["same_answer_every_run"]]:
        yield f"The answer was not the same in every run: {', '.join(unsteady)}."
    if unstable := [cell["name"] for cell in record["cells"] if cell["unstable"]]:
        yield f"Unstable (runs deviate by more than a tenth from their median): {', '.join(unstable)}."
    if any(cell["load_cold_s"] is None for cell in record["cells"]):
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


def _stitching_note(record: Record) -> str:
    measured = [cell for cell in shown_cells(record) if cell["stitching"]]
    said = (
        "end to end over the sum of the request's own backend calls, made again with nothing around them; "
        f"at most {MOST_STITCHING} is wanted of language models from 135 M parameters on"
    )
    large = {b["name"] for b in record["bundles"] if b["parameters"]["language_model"] >= 130_000_000}
    over = [c["name"] for c in measured if c["model"] in large and c["stitching"]["ratio"] > MOST_STITCHING]
    return f"{said}. OVER IT: {', '.join(over)}." if over else f"{said}."


def _control_line(record: Record) -> str:
    ratios = {r["metric"]: r for r in record["ratios"] if r["cell"] == record["control"]}
    total, first = (_interval(ratios[metric], 3) for metric in METRICS)
    said = f"A/A control ({record['control']}): end to end {total}, first token {first}"
    failed = [METRICS[metric] for metric, passed in record["control_passed"].items() if not passed]
    if not failed:
        return f"{said}; both include 1."
    return f"{said}; 1 is excluded: NO CLAIM IS VALID about {' and '.join(failed)}."


def _machine_notes(record: Record) -> Iterator[str]:
    machine = record["machine"]
    cpu = machine["cpu"]
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ""
    cores = f"{cpu['usable_cores']} cores usable"
    yield f"{cpu['model']}, {cores}{gpus}, {machine['system']}; {_load_note(record)}"
    versions = {name: value for name, value in machine["versions"].items() if value}
    source = machine["source"]
    commit = (
        f", commit {source['commit'][:12]}{' with changes' if source['changed'] else ''}" if source else ""
    )
    yield f"{', '.join(f'{name} {value}' for name, value in versions.items())}{commit}"
    for bundle in record["bundles"]:
        yield f"{bundle['name']}: manifest sha256 {bundle['manifest_sha256']}"
    yield machine["time_utc"]


def _load_note(record: Record) -> str:
    load = record["load"]
    loads = [load[when]["load_average_1_min"] for when in ("before", "after")]
    said = "load unknown" if None in loads else f"load average {loads[0]:.1f} before, {loads[1]:.1f} after"
    blocks: list[Any] = [block for session in load["blocks"] for block in session if block is not None]
    disturbed = sum(block["disturbed"] for block in blocks)
    if blocks:
        said += f"; {disturbed} of {len(blocks)} blocks disturbed by others"
    for when in ("before", "after"):
        if line := busy_line(load[when]):
            said += f"; {when}: {line}"
    return said
