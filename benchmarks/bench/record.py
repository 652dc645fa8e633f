"""Run a comparison, and make the record that everything printed or drawn is derived from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.benchmarks.evals.scores import MAX_TOKENS, count_pictures
from tinyllava_edge.bundle import Bundle, sha256_of_file
from tinyllava_edge.errors import BackendError, UsageError
from tinyllava_edge.image import open_picture
from tinyllava_edge.runtimes.threads import thread_budget

from .device_memory import device_kind
from .energy import power_record
from .environment import machine_card
from .figures import Record, cell_record, ratios_of
from .floors import floors_of
from .growth import growth_record, measure_growth
from .machine_load import busy_line, watch
from .measure import CellSession, Measured, OnEvent, measure_cells
from .pace import Pace, TimeUp, bound_text
from .peers.rivals import RivalCell
from .peers.rows import rivals_record
from .plan import Plan, cell_files
from .power import watched_power
from .quality import Quality, score_cells
from .report_schema import SCHEMA_VERSION
from .roofline import measure_roof

Row = TypeVar("Row", bound=Cell | RivalCell)
_IDLE_S = 3.0  # in which the power that nothing takes is read


def run_plan(
    plan: Plan,
    quality: Quality | None = None,
    on_event: OnEvent = lambda event: None,
    on_answer: Callable[[], None] = lambda: None,
    warn: Callable[[str], None] = lambda text: None,
) -> tuple[Record, KeyboardInterrupt | None]:
    """Measure everything, and derive the figures.

    Args:
        plan: what to do.
        quality: questions to score every cell with, or None.
        on_event: called with each event and figure as it comes; see `measure.measure_cells`.
        on_answer: called after each answer to a question.
        warn: called with what makes the figures doubtful, as soon as it is known.

    Returns:
        The record, and the signal that ended it, which the caller raises again once the record is kept.

    Raises:
        BackendError: a cell failed before anything was measured.
        UsageError: the time was up before.
    """
    asked, card, whole = _request_record(plan), machine_card(), Pace(plan.amount, plan.within_s)
    with watched_power() as power:
        before = watch(_IDLE_S if power.is_read else 1.0)
        idle = power.mean_so_far_w()
        if line := busy_line(before):
            warn(f"the machine is busy, so these figures will not be worth much: {line}")
        roof = _roof(plan, on_event, warn)
        files = {row.name: _files_of(row, plan) for row in plan.rows}
        # Of a bound, what comes behind the times has half.
        later = quality is not None or plan.growth
        pace = Pace(plan.amount, plan.within_s / 2) if later and plan.within_s is not None else whole
        found = measure_cells(plan.rows, plan.request, plan.amount, files, on_event, power, pace)
    after: Record = {}
    _then(found, "the load was read", lambda: after.update(watch()))
    after = after or watch(0.1)
    if line := busy_line(after):
        warn(f"the machine is busy now: {line}")
    if not (cells := list(_cell_records(plan, found))):
        raise found.stopped or found.error or UsageError(f"{found.ended} came before anything was measured.")
    record: Record = {
        "schema_version": SCHEMA_VERSION,
        "bundles": [_bundle_record(name, bundle) for name, bundle in plan.bundles.items()],
        "request": asked,
        "amount": {**asdict(plan.amount), "runs": plan.amount.runs},
        "quick": plan.quick,
        "machine": card,
        "roof": roof,
        "power": power_record(power, idle),
        "device_memory": device_kind() or None,
        "load": {"before": before, "after": after, "blocks": [session.blocks for session in found.sessions]},
        "baseline": plan.cells[0].name,
        "control": plan.cells[-1].name,
        "cells": cells,
        "ratios": list(ratios_of(cells)),
        "questions": None,
        "growth": None,
        "rivals": _rivals_record(plan, found),
    }
    record["control_passed"] = {
        ratio["metric"]: ratio["low"] <= 1 <= ratio["high"]
        for ratio in record["ratios"]
        if ratio["cell"] == record["control"]
    }
    for cell, row in ((cell, row) for cell in plan.cells for row in cells if row["name"] == cell.name):
        row["floors"] = floors_of(cell, plan.bundles[cell.model], row["warm"], roof)
    if plan.growth:
        _then(found, "growth was measured", lambda: _add_growth(record, plan, whole.check, on_event))
    if quality is not None:

        def answered() -> None:
            whole.check()
            on_answer()

        _then(found, "questions were asked", lambda: _add_quality(record, plan, quality, found, answered))
    record["partial"] = _partial_record(plan, cells, found)
    return record, found.stopped


def _roof(plan: Plan, on_event: OnEvent, warn: Callable[[str], None]) -> Record | None:
    """What this machine can do, with the threads of the rows; None where that is not asked for, or fails."""
    if not plan.roofline:
        return None
    try:
        roof = measure_roof(thread_budget(plan.cells[0].options.threads))
        on_event({"event": "roof", **roof})
        return roof
    except BackendError as error:
        warn(f"no floors: {error}")
        return None


def _cell_records(plan: Plan, found: Measured) -> Iterator[Record]:
    """Rows of the cells that answered at all."""
    for cell, sessions in _sessions_of(plan.cells, plan, found):
        if answered := [session for session in sessions if session.warm_up]:
            yield cell_record(cell, plan.bundles[cell.model], answered)


def _files_of(row: Cell | RivalCell, plan: Plan) -> Sequence[Path]:
    return row.weights if isinstance(row, RivalCell) else cell_files(row, plan.bundles[row.model])


def _sessions_of(rows: Sequence[Row], plan: Plan, found: Measured) -> Iterator[tuple[Row, list[CellSession]]]:
    """Rows with all their sessions."""
    places = {row.name: index for index, row in enumerate(plan.rows)}
    for row in rows:
        yield row, [session.cells[places[row.name]] for session in found.sessions]


def _rivals_record(plan: Plan, found: Measured) -> Record | None:
    """Rivals' rows and ratios; None where nobody asked for any."""
    if not (plan.rivals or plan.absent):
        return None
    ours = [(cell.name, sessions) for cell, sessions in _sessions_of(plan.cells[:-1], plan, found)]
    return rivals_record(
        ours, list(_sessions_of(plan.rivals, plan, found)), plan.absent, plan.accuracy, plan.reference
    )


def _partial_record(plan: Plan, cells: Sequence[Record], found: Measured) -> Record | None:
    """Why this is not all that was planned, and what is missing; None where it is."""
    done = {cell["name"]: cell["blocks"] for cell in cells}
    wanted = plan.amount.sessions * plan.amount.blocks
    fewer = [name for cell in plan.cells if done.get(name := cell.name, 0) < wanted]
    if not (found.ended or found.failed or fewer):
        return None
    return {
        "why": found.ended or ("a row failed" if found.failed else bound_text(plan.within_s)),
        "failed": found.failed,
        "error": found.error is not None,
        "not_measured": [cell.name for cell in plan.cells if cell.name not in done],
        "runs": {name: 2 * done.get(name, 0) for name in fewer},
        "wanted_runs": 2 * wanted,
    }


def _add_quality(
    record: Record, plan: Plan, quality: Quality, found: Measured, on_answer: Callable[[], None]
) -> None:
    """Scores of the rows."""
    record["questions"] = {
        "file": quality.path.name,
        "sha256": sha256_of_file(quality.path),
        "questions": len(quality.questions),
        "pictures": count_pictures(quality.questions),
        "max_tokens": MAX_TOKENS,
    }
    measured = {cell["name"] for cell in record["cells"]} - {*found.failed, record["control"]}
    scores: dict[str, Record] = {}
    try:
        cells = [cell for cell in plan.cells if cell.name in measured]
        score_cells(cells, plan.request, quality, on_answer, scores)
    finally:
        for row in record["cells"]:
            row["quality"] = scores.get(row["name"])


def _add_growth(record: Record, plan: Plan, check: Callable[[], None], on_event: OnEvent) -> None:
    """Of the first row that computes from the bundle's own files; else of the first one."""
    cell = next((cell for cell in plan.cells if cell.options.checkpoint is None), plan.cells[0])
    points: list[Record] = []
    try:
        measure_growth(cell, plan.request, plan.bundles[cell.model], check, on_event, points)
    finally:
        if points:
            record["growth"] = growth_record(cell.name, points)
            for curve in record["growth"]["curves"]:
                on_event({"event": "curve", **curve})


def _then(found: Measured, doing: str, work: Callable[[], None]) -> None:
    """Do what comes after the times, unless a signal has come; whatever ends it leaves what was done."""
    if found.stopped:
        return
    try:
        work()
    except (TimeUp, BackendError) as error:
        found.ended = found.ended or f"{error}, while {doing}"
    except KeyboardInterrupt as stop:
        found.ended, found.stopped = f"stopped by {str(stop) or 'Ctrl-C'}, while {doing}", stop


def _request_record(plan: Plan) -> Record:
    """What is asked; a picture is known by its content.

    Raises:
        ImageError: the picture cannot be read.
    """
    picture = Path(plan.request.picture)
    width, height = open_picture(picture).size
    about = {"name": picture.name, "sha256": sha256_of_file(picture), "width": width, "height": height}
    return {**asdict(plan.request), "picture": about, "threads": plan.cells[0].options.threads}


def _bundle_record(name: str, bundle: Bundle) -> Record:
    manifest = bundle.manifest
    return {
        "name": name,
        "manifest_sha256": bundle.manifest_sha256,
        "checkpoint_sha256": manifest.source.checkpoint_sha256,
        "parameters": {part: value.parameters for part, value in manifest.parts.items()},
        "image_size": manifest.vision.image_size,
        "tokens_per_picture": manifest.vision.num_tokens,
    }
