"""The command `tinyllava-edge hardware-check`."""

import os
import shutil
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllava_edge.atomic_files import check_output, output_file
from tinyllava_edge.command_options import JsonOption
from tinyllava_edge.console import note, print_json, stdout
from tinyllava_edge.errors import UsageError

if TYPE_CHECKING:
    from .plan import Wish


def hardware_check(
    bundles: Annotated[
        list[str] | None, typer.Argument(help="Bundle directories; nano's by default.", metavar="[BUNDLE]...")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the report.")] = Path(
        "hardware-check"
    ),
    modes: Annotated[
        str, typer.Option(help="Power modes of a Jetson by name, comma-separated, or 'all'; needs sudo.")
    ] = "",
    soak: Annotated[float, typer.Option(min=0, help="Minutes to answer on end, to see it slow down.")] = 0,
    peers: Annotated[
        str,
        typer.Option(
            help="Others to run, comma-separated, or 'all': llama-server, vllm, tensorrt-edge-llm, "
            "transformers-cuda. They download gigabytes."
        ),
    ] = "",
    peer_model: Annotated[
        str, typer.Option(help="What peers get that load no bundle; a directory or a name of the hub.")
    ] = "Qwen/Qwen2.5-0.5B-Instruct",
    runs: Annotated[int, typer.Option(min=2, help="Runs of each row of bench.")] = 24,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of every answer of bench.")] = 64,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing report.")] = False,
    json: JsonOption = False,
) -> None:
    """Run all that this device can show; exit code 1 where a step fails, or what is required is missing.

    TINYLLAVA_EDGE_REQUIRE=cuda,tensorrt,jetson names what must be there; else a step that cannot be done is
    skipped with its reason. Each step's result is kept as it comes; the report to send back is OUTPUT.tar.gz.
    """
    from tinyllava_edge.benchmarks.evals.hub_report import packed_mark
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.checkpoint.names import bundle_path
    from tinyllava_edge.export.options import parse_names

    from .modes import chosen_modes
    from .peers import PEERS
    from .plan import Wish
    from .probes import REQUIRE, missing
    from .report import markdown_lines, pack, passed, report_mark

    lacking = missing(os.environ.get(REQUIRE, ""))
    names = parse_names(peers)
    for name in names:
        if name not in (*PEERS, "all"):
            raise UsageError(f"--peers {name}: expected {', '.join(PEERS)}, or all.")
    power_modes = tuple(filter(None, (name.strip() for name in modes.split(","))))  # in their own case
    chosen_modes(power_modes)
    roots = [Bundle.open(bundle_path(name)).root for name in bundles or ["nano"]]
    output = output.absolute()
    packed = output.with_name(f"{output.name}.tar.gz")
    check_output(output, force=force, mark=report_mark, sources=roots)
    check_output(packed, force=force, mark=packed_mark, sources=roots)
    wish = Wish(
        bundles=tuple(bundles or ["nano"]),
        modes=power_modes,
        soak_minutes=soak,
        peers=PEERS if names == ("all",) else names,
        peer_model=peer_model,
        runs=runs,
        tokens=tokens,
    )
    if output.is_dir() and not output.is_symlink():
        shutil.rmtree(output)
    output.unlink(missing_ok=True)
    output.mkdir(parents=True)
    record = _check(output, wish, lacking)
    with output_file(packed, force=force, mark=packed_mark) as work:
        pack(output, work)
    if json:
        print_json(record)
    else:
        for line in markdown_lines(record):
            stdout.print(line, markup=False, highlight=False, soft_wrap=True)
    note(f"written to {output}; send back {packed}")
    if not passed(record):
        raise typer.Exit(1)


def _check(folder: Path, wish: "Wish", lacking: dict[str, str]) -> dict[str, Any]:
    """Do all steps, one after the other, and write the report after each."""
    from tinyllava_edge.benchmarks.bench.environment import machine_card
    from tinyllava_edge.device import read_machine

    from .judge import judged
    from .plan import first_step, further_steps, usable_runtimes
    from .report import KIND, write_report
    from .steps import Step, reason_to_skip, run_step

    machine = read_machine()
    record: dict[str, Any] = {
        "kind": KIND, "schema_version": 1,
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "options": asdict(wish), "machine": machine_card(), "missing": lacking, "steps": [], "judged": [],
    }  # fmt: skip

    def do(step: Step, place: str) -> Any:
        if not reason_to_skip(step):
            note(f"[{place}] {step.name}: begins, at most {step.minutes:g} minutes")
        found = run_step(step, folder)
        because = f": {found['reason']}" if found["reason"] else ""
        note(f"[{place}] {step.name}: {found['state']} after {found['seconds']:.0f} s{because}")
        record["steps"].append(found)
        record["judged"] = list(judged(folder, machine))
        write_report(folder, record)
        return found["result"]

    report = do(first_step(), "1")
    steps = list(further_steps(wish, usable_runtimes(report), folder))
    for index, step in enumerate(steps):
        do(step, f"{index + 2} of {len(steps) + 1}")
    return record
