"""From a process's start to its first token, and decode beside a busy process: ours and others in turns.

    python -m tools.cold_and_busy BUNDLE --runtime openvino-int8 --vision int8 --language ov_int8
        --peers mtmd,openvino-int8 --peers-checkpoint DIR -o benchmarks/results/cold_and_busy/NAME

docs/measuring.md says what is measured.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

import tools
from tinyllava_edge.atomic_files import write_bytes, write_json
from tinyllava_edge.benchmarks.bench.environment import machine_card
from tinyllava_edge.benchmarks.bench.machine_load import busy_line, watch
from tinyllava_edge.benchmarks.bench.pace import Amount
from tinyllava_edge.benchmarks.bench.peers.prepared import prepare
from tinyllava_edge.benchmarks.bench.peers.rivals import Absent, Places, RivalCell, check_names, plan_rivals
from tinyllava_edge.benchmarks.bench.plan import Plan, check_memory, plan_cells
from tinyllava_edge.benchmarks.bench.ratios import median_deviation
from tinyllava_edge.benchmarks.bench.worker import Request
from tinyllava_edge.benchmarks.evals.cells import Wish, named_bundles
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.console import stdout
from tinyllava_edge.device import read_memory
from tinyllava_edge.export.options import parse_names
from tinyllava_edge.reference_tensors import reference_pictures
from tinyllava_edge.runtimes.registry import CPU_RUNTIME
from tinyllava_edge.runtimes.threads import thread_budget

from .busy import BESIDE, busy_sessions
from .cold import starts
from .turns import Pairs, in_turns, ratio_of, text_of

_TOKENS = 32
_BUSY_THREADS = 2
_SESSIONS = 2  # in which the rows of busy are opened anew
Record = dict[str, Any]
Sessions = dict[str, list[Pairs]]


def measure_cold(plan: Plan, rounds: int, folder: Path, failed: dict[str, str]) -> Sessions:
    """Pairs of a first token's times, of one session: every process is a new one."""
    rows = dict(starts(plan, folder))
    rows[plan.cells[-1].name] = rows[plan.cells[0].name]
    in_turns({name: row.before for name, row in rows.items()}, 1, failed)
    found = in_turns({name: row.visit for name, row in rows.items()}, rounds, failed)
    return {name: [pairs] for name, pairs in found.items()}


def cold_lines(sessions: Sessions, plan: Plan) -> Iterator[str]:
    """The table of starts, and that of ratios."""
    yield "| row | first token, ms | open, ms |"
    yield "|---|--:|--:|"
    for name, row in sessions.items():
        yield f"| {name} | {_middle(row, 'first_token_ms')} | {_middle(row, 'opened_ms')} |"
    yield ""
    yield from _over(sessions, "first_token_ms", *_sides(sessions, plan))


def busy_lines(sessions: Sessions, plan: Plan) -> Iterator[str]:
    """The table of tokens, calm and beside, and that of ratios beside the busy process."""
    first = sessions[plan.cells[0].name]
    yield "| row | calm, ms a token | beside it | beside it / calm | beside it / ours calm |"
    yield "|---|--:|--:|--:|--:|"
    for name in [name for name in sessions if not name.endswith(BESIDE)]:
        calm, beside = sessions[name], sessions[name + BESIDE]
        shown = [_middle(row, "token_ms") for row in (calm, beside)]
        shown += [text_of(ratio_of(beside, other, "token_ms")) for other in (calm, first)]
        yield f"| {' | '.join([name, *shown])} |"
    yield ""
    ends = {name: row for name, row in sessions.items() if name.endswith(BESIDE)}
    yield from _over(ends, "token_ms", *_sides(ends, plan))


def _sides(sessions: Sessions, plan: Plan) -> tuple[list[str], list[str]]:
    """Names of our rows, the control's among them, and of all others'."""
    rivals = tuple(rival.name for rival in plan.rivals)
    theirs = [name for name in sessions if name.split(",")[0] in rivals]
    return [name for name in sessions if name not in theirs], theirs


def _over(sessions: Sessions, metric: str, ours: Sequence[str], theirs: Sequence[str]) -> Iterator[str]:
    """Ratios of each row of ours to theirs and to the first, which its own second one makes the control."""
    columns = [*theirs, ours[0]]
    yield f"| ours / theirs | {' | '.join(columns)} |"
    yield f"|---|{'--:|' * len(columns)}"
    for name in ours:
        ratios = (text_of(ratio_of(sessions[name], sessions[other], metric)) for other in columns)
        yield f"| {name} | {' | '.join(ratios)} |"


def _middle(row: list[Pairs], metric: str) -> str:
    """Median and median absolute deviation, or a dash where the row has no such time."""
    times = [sample[metric] for pairs in row for pair in pairs for sample in pair if metric in sample]
    return f"{median(times):.1f} +- {median_deviation(times):.1f}" if times else "-"


def notes_of(record: Record, plan: Plan) -> Iterator[str]:
    """What a reader has to know beside the tables."""
    yield (
        f"{', '.join(plan.bundles)} {record['manifest_sha256'][:12]}, {record['machine']['cpu']['model']}, "
        f"{record['threads']} threads, {record['rounds']} rounds of two visits."
    )
    for when, load in record["load"].items():
        if line := busy_line(load):
            yield f"THE MACHINE WAS BUSY {when}: {line}."
    if plan.rivals:
        names = ", ".join(rival.name for rival in plan.rivals)
        yield f"{names}: rows of `bench --peers`, whose reports say what they cannot match."
    yield from (f"{name}: NOT MEASURED: {why}" for name, why in record["failed"].items())


def plan_of(
    bundle: Bundle, wish: Wish, rivals: Sequence[str], places: Places, folder: Path
) -> tuple[Plan, dict[str, str]]:
    """What is measured, and why what else was asked for is not there."""
    named = named_bundles([bundle])
    request = Request(
        picture=str(reference_pictures(bundle)[0]),
        question="What is this?",
        second_question="What colour is it?",
        num_tokens=_TOKENS,
    )
    plan = Plan(
        bundles=named, cells=plan_cells(named, wish), request=request, amount=Amount(sessions=1, blocks=1)
    )
    found = list(plan_rivals(rivals, bundle, plan.cells[:-1], places, prepare(bundle, request, folder)))
    plan = replace(plan, rivals=tuple(one for one in found if isinstance(one, RivalCell)))
    memory = read_memory()
    check_memory(plan, None if memory is None else memory.available_bytes)
    return plan, {one.name: one.why for one in found if isinstance(one, Absent)}


def main(
    bundle: Annotated[str, typer.Argument(help="A bundle's directory, or nano.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Writes NAME.md and NAME.json.")],
    runtimes: Annotated[str, typer.Option("--runtime", help="As of bench.")] = CPU_RUNTIME,
    vision: Annotated[str, typer.Option(help="As of bench.")] = "",
    language: Annotated[str, typer.Option(help="As of bench.")] = "",
    peers: Annotated[str, typer.Option(help="As of bench.")] = "",
    peers_checkpoint: Annotated[Path | None, typer.Option(help="As of bench.")] = None,
    rounds: Annotated[int, typer.Option(help="Of two visits to each row.", min=_SESSIONS)] = 8,
) -> None:
    """Measure both, and write tables and all samples."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # of ours, which nobody compiled, as of installed ones
    opened = Bundle.open(bundle_path(bundle))
    wish = Wish(runtimes=parse_names(runtimes), vision=parse_names(vision), language=parse_names(language))
    places = Places(checkpoint=peers_checkpoint)
    with TemporaryDirectory(prefix="cold-and-busy-") as folder:
        plan, failed = plan_of(opened, wish, check_names(parse_names(peers)), places, Path(folder))
        record: Record = {
            "manifest_sha256": opened.manifest_sha256,
            "request": asdict(plan.request),
            "machine": machine_card(),
            "threads": thread_budget(None),
            "rounds": rounds,
            "failed": failed,
            "load": {"before": watch()},
        }
        record["cold"] = measure_cold(plan, rounds, Path(folder), failed)
        write_json(output.with_suffix(".json"), record)  # whatever ends the rest
        record["busy"] = busy_sessions(plan, _BUSY_THREADS, _SESSIONS, -(-rounds // _SESSIONS), failed)
    record["load"]["after"] = watch()
    write_json(output.with_suffix(".json"), record)
    notes = [f"- {line}" for line in notes_of(record, plan)]
    cold = ["## From the start of a process to its first token", "", *cold_lines(record["cold"], plan)]
    title = f"## Decode, and beside a process with {_BUSY_THREADS} busy threads"
    busy = [title, "", *busy_lines(record["busy"], plan)]
    text = "\n".join(["# A new process, and a busy one beside", "", *notes, "", *cold, "", *busy, ""])
    write_bytes(output.with_suffix(".md"), text.encode())
    stdout.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    tools.run(main)
