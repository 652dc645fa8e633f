"""What is said beside the figures of a report: what is missing, what they mean, what they depend on."""

from collections.abc import Iterator
from typing import Any

from .device_memory import LABELS
from .figures import METRICS, Record, shown_cells
from .machine_load import busy_line
from .peers.tables import rival_notes
from .tables import interval_text

MOST_STITCHING = 1.03  # end to end over the raw calls, for a language model of 135 M parameters and more


def title_of(record: Record) -> str:
    """What is compared."""
    return f"{', '.join(bundle['name'] for bundle in record['bundles'])}: the same request on every variant"


def what_was_asked(record: Record) -> str:
    """The request, and how often it was made."""
    request, amount = record["request"], record["amount"]
    return (
        f'One picture, "{request["question"]}", {request["num_tokens"]} greedy tokens, batch 1. Medians of '
        f"{amount['runs']} runs in {amount['sessions']} sessions; ms unless said otherwise. Nothing is "
        "cached but where it says so."
    )


def warning_lines(record: Record) -> Iterator[str]:
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


def notes_of(record: Record) -> Iterator[str]:
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
    if roof := record.get("roof"):
        yield f"*floor*: {_roof_note(roof)}"
    if kind := record.get("device_memory"):
        yield f"*{LABELS[kind]}*: {_DEVICE_NOTES[kind]}"
    if (power := record.get("power")) and power["whole"]:
        yield f"*J/answer*: {_energy_note(power)}"
    yield from rival_notes(record)
    yield control_line(record)
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


def _roof_note(roof: Record) -> str:
    rates = [f"{kind} {rate:.0f} GFLOP/s ({roof['by'][kind]})" for kind, rate in roof["gflops"].items()]
    return (
        "the least time for what a stage must multiply (a token: must read, of weights and cache) at "
        f"the rates that this machine reached just before, {roof['threads']} threads: {', '.join(rates)}, "
        f"{roof['read_gb_per_s']:.1f} GB/s read. 100 % is a stage at its floor."
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


def control_line(record: Record) -> str:
    """What the same row measured twice says of the rest."""
    ratios = {r["metric"]: r for r in record["ratios"] if r["cell"] == record["control"]}
    if not ratios:
        return f"A/A control ({record['control']}): not measured, so NO CLAIM IS VALID."
    total, first = (interval_text(ratios[metric], 3) for metric in METRICS)
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
