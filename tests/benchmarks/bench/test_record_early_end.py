"""What ends a comparison early leaves a report of what was done. Every cell is the scripted runtime."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.bench.test_record import BLOCK, request, scripted
from tests.benchmarks.conftest import Honest
from tinyllava_edge.benchmarks.bench import report
from tinyllava_edge.benchmarks.bench.compare import compare_cells, read_report
from tinyllava_edge.benchmarks.bench.live import Live, kept_samples, samples_path
from tinyllava_edge.benchmarks.bench.machine_load import watch
from tinyllava_edge.benchmarks.bench.measure import measure_cells
from tinyllava_edge.benchmarks.bench.pace import Amount, Pace
from tinyllava_edge.benchmarks.bench.plan import Plan, plan_cells, quick_plan
from tinyllava_edge.benchmarks.bench.record import run_plan
from tinyllava_edge.benchmarks.bench.report import markdown_lines, write_report
from tinyllava_edge.benchmarks.bench.worker_process import Worker
from tinyllava_edge.benchmarks.evals.cells import Wish
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BackendError, OutputExistsError, UsageError

FEW = Amount(sessions=1, blocks=3, warm_up_s=0.0, warm_up_runs=2, alone=False)
Event = dict[str, Any]


@pytest.fixture(autouse=True)
def _no_long_look_at_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyllava_edge.benchmarks.bench.record.watch", lambda seconds=0.0: watch(0.01))


def plan_of(honest: Honest, amount: Amount = FEW, **more: Any) -> Plan:
    bundles = {"tiny": Bundle.open(honest.bundle)}
    cells = plan_cells(bundles, Wish(runtimes=("scripted",), language=("f32", "q8_0")))
    return Plan(bundles=bundles, cells=cells, request=request(honest), amount=amount, **more)


def fails_at(monkeypatch: pytest.MonkeyPatch, cell: str, job: str, times: int, error: BaseException) -> None:
    """Make a cell's process end, or a signal come, when it is given that job for the so-manieth time."""
    asked, ask = [], Worker.ask

    def ends(self: Worker, wanted: str, *arguments: Any, **details: Any) -> Any:
        if (self.name, wanted) == (cell, job):
            asked.append(wanted)
            if len(asked) == times:
                raise error
        return ask(self, wanted, *arguments, **details)

    monkeypatch.setattr(Worker, "ask", ends)


def test_a_row_that_fails_is_left_out_and_the_others_go_on(
    honest: Honest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fails_at(monkeypatch, "fp32 + q8_0", "requests", 2 + 2 + 1, BackendError("q8_0: its process ended"))
    events: list[Event] = []
    record, stop = run_plan(plan_of(honest), on_event=events.append)
    assert stop is None
    f32, q8_0, control = record["cells"]
    assert [cell["blocks"] for cell in record["cells"]] == [3, 1, 3]
    assert (f32["warm"]["runs"], q8_0["warm"]["runs"], control["warm"]["runs"]) == (6, 2, 6)
    assert record["partial"]["failed"] == {"fp32 + q8_0": "q8_0: its process ended"}
    assert record["partial"]["runs"] == {"fp32 + q8_0": 2}
    text = "\n".join(markdown_lines(record))
    assert "**PARTIAL: a row failed.**" in text
    assert "**fp32 + q8_0 FAILED: q8_0: its process ended**" in text
    assert [event["cell"] for event in events if event["event"] == "failed"] == ["fp32 + q8_0"]
    write_report(tmp_path, record)
    again = read_report(tmp_path)  # and it can be compared, row by row
    compared = {each.name: each.ratio.ratio for each in compare_cells(again, again)}
    assert compared == {"fp32 + f32": 1, "fp32 + q8_0": 1}


def test_without_the_row_that_all_are_compared_with_nothing_goes_on(
    honest: Honest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at(monkeypatch, "fp32 + f32", "requests", 5, BackendError("f32: its process ended"))
    record, _ = run_plan(plan_of(honest))
    assert [cell["blocks"] for cell in record["cells"]] == [1, 1, 1]
    assert record["partial"]["error"]
    assert record["partial"]["why"] == "f32: its process ended"


def test_a_signal_leaves_what_was_done_and_is_handed_on(
    honest: Honest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = KeyboardInterrupt("SIGTERM")
    fails_at(monkeypatch, "fp32 + q8_0", "raw", 1 + 3, stop)
    record, found = run_plan(plan_of(honest))
    assert found is stop
    assert [cell["blocks"] for cell in record["cells"]] == [1, 1, 1]
    assert "**PARTIAL: stopped by SIGTERM.**" in list(markdown_lines(record))
    assert "window_s" not in record["cells"][0]["sessions"][0]["requests"][0][0]["warm"]


def test_a_signal_behind_the_last_block_takes_nothing_away(
    honest: Honest, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def stopped(seconds: float = 1.0) -> Any:
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt("SIGTERM")
        return watch(0.01)

    monkeypatch.setattr("tinyllava_edge.benchmarks.bench.record.watch", stopped)
    record, stop = run_plan(plan_of(honest))
    assert stop is not None
    assert [cell["blocks"] for cell in record["cells"]] == [3, 3, 3]
    assert record["partial"]["why"] == "stopped by SIGTERM, while the load was read"


def test_before_the_first_block_there_are_the_warm_ups_figures_and_no_claim(
    honest: Honest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fails_at(monkeypatch, "fp32 + q8_0", "requests", 2, KeyboardInterrupt())
    record, _ = run_plan(plan_of(honest))
    found = {cell["name"]: cell["blocks"] for cell in record["cells"]}
    assert found == {"fp32 + f32": 0, "fp32 + q8_0": 0}
    assert record["ratios"] == []
    text = "\n".join(markdown_lines(record))
    for said in ("stopped by Ctrl-C", "Not measured: fp32 + f32 again.", "fp32 + f32 only its warm-up"):
        assert said in text
    assert "NO CLAIM IS VALID" in text
    write_report(tmp_path, record)
    assert (tmp_path / "report.png").exists()


def test_where_nothing_was_measured_there_is_no_report(
    honest: Honest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"time bound of 1e-05 min came before anything was measured"):
        run_plan(plan_of(honest, within_s=0.0006))
    fails_at(monkeypatch, "fp32 + f32", "requests", 1, BackendError("f32: gone"))
    with pytest.raises(BackendError, match="f32: gone"):
        run_plan(plan_of(honest))


def test_a_time_bound_ends_it_between_two_visits(honest: Honest) -> None:
    amount = replace(FEW, blocks=10_000)
    cells = [scripted(honest, "a"), scripted(honest, "a again")]
    pace = Pace(amount, within_s=36_000.0)

    def on_event(event: Event) -> None:
        if event["event"] == "block":
            pace._within_s = 0.0

    files: dict[str, list[Path]] = {cell.name: [] for cell in cells}
    found = measure_cells(cells, request(honest), amount, files, on_event, pace=pace)
    assert (len(found.sessions[0].blocks), found.ended) == (1, "the time bound of 0 min")


def test_a_bound_is_shared_out_among_the_sessions_that_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("tinyllava_edge.benchmarks.bench.pace.time.monotonic", lambda: now[0])
    for within_s, shared in ((1000.0, (3, 10)), (300.0, (3, 6)), (170.0, (2, 4)), (50.0, (1, 1))):
        now[0] = 0.0
        pace = Pace(Amount(sessions=3, blocks=10), within_s)
        pace.begin()
        now[0] = 40 + 10  # to open and warm up, and the first block
        pace.first_block(10.0)
        assert (pace.sessions, pace.blocks) == shared, within_s
    free = Pace(Amount(sessions=3, blocks=10))
    free.begin()
    now[0] += 50
    free.first_block(10.0)
    assert (free.sessions, free.blocks) == (3, 10)
    assert free.left_s(0, 0, 10.0) == 9 * 10 + 2 * (40 + 10 * 10)


def test_figures_are_said_and_every_sample_is_kept_as_it_comes(honest: Honest, tmp_path: Path) -> None:
    lines: list[str] = []
    live = Live(lines.append)
    cells = [scripted(honest, "a"), scripted(honest, "b"), scripted(honest, "a again")]
    kept: list[Event] = []
    with kept_samples(tmp_path / "r", {"cells": 3}, force=False) as keep:

        def on_event(event: Event) -> None:
            keep(event)
            live(event)
            if event["event"] == "block":
                kept.extend(map(json.loads, samples_path(tmp_path / "r").read_text().splitlines()))

        files: dict[str, list[Path]] = {cell.name: [] for cell in cells}
        measure_cells(cells, request(honest), BLOCK, files, on_event)
    assert not samples_path(tmp_path / "r").exists()  # the report has them
    assert kept[0] == {"bench": {"cells": 3}}
    assert sum(event.get("job") == "requests" for event in kept) == 3 * 2
    assert sum(event.get("job") == "raw" for event in kept) == 2 * 2
    text = "\n".join(lines)
    assert re.search(r"b: warm after \d+ requests, [\d.]+ -> [\d.]+ ms", text)
    assert "session 1 of 1, block 1 of 1, 0 s left" in text
    assert text.count(", 2 runs") == 3
    assert ", x" in lines[-1]


def test_what_a_killed_run_left_is_replaced_only_if_asked_and_only_if_it_is_ours(tmp_path: Path) -> None:
    path = samples_path(tmp_path / "r")
    path.write_text('{"bench": {}}\n')
    with pytest.raises(OutputExistsError), kept_samples(tmp_path / "r", {}, force=False):
        pass
    with kept_samples(tmp_path / "r", {}, force=True):
        pass
    path.write_text('{"mine": 1}\n')
    with (
        pytest.raises(OutputExistsError, match="has no samples"),
        kept_samples(tmp_path / "r", {}, force=True),
    ):
        pass


def test_an_error_of_ours_leaves_the_samples(tmp_path: Path) -> None:
    def fails(*events: Event) -> None:
        with kept_samples(tmp_path / "r", {}, force=False) as keep:
            for event in events:
                keep(event)
            raise ZeroDivisionError

    path = samples_path(tmp_path / "r")
    with pytest.raises(ZeroDivisionError):
        fails({"event": "opened"})
    assert not path.exists()  # there was no sample yet
    with pytest.raises(ZeroDivisionError):
        fails({"event": "opened"}, {"event": "sample"})
    assert len(path.read_text().splitlines()) == 3


def test_without_matplotlib_the_report_is_written_and_one_line_says_what_is_missing(
    honest: Honest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = run_plan(quick_plan(plan_of(honest), 60.0))
    said: list[str] = []
    monkeypatch.setattr(report, "note", said.append)
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    write_report(tmp_path, record)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    assert len(said) == 1
    assert "matplotlib" in said[0]
    text = (tmp_path / "report.md").read_text()
    assert "makes no claim" in text
    assert "no claim |" in text  # in the place of faster or slower


def test_a_quick_look_is_bounded_by_the_weights(honest: Honest) -> None:
    plan = quick_plan(plan_of(honest), 120.0)
    assert plan.quick
    assert plan.within_s == pytest.approx(120, abs=1)  # a tiny bundle's are nothing
    assert quick_plan(plan_of(honest, within_s=7.0), 120.0).within_s == 7.0


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM there")
def test_the_command_is_stopped_and_its_report_is_there(honest: Honest, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinyllava_edge", "bench", str(honest.bundle), "--runtime", "scripted"]
    command += ["--language", "f32", "--runs", "20000", "--sessions", "1", "-o", str(tmp_path / "r")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "medians so far" in line:
                process.send_signal(signal.SIGTERM)
                break
        printed, rest = process.communicate(timeout=60)
    assert process.returncode == 143, rest
    assert "PARTIAL: stopped by SIGTERM" in printed
    record = read_report(tmp_path / "r")
    assert record["partial"]["why"] == "stopped by SIGTERM"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]
