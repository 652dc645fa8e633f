"""Every planted fault is caught at its stage, and its cause is said. CPU, a random tiny model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.conftest import Honest, climb_quickly
from tinyllava_edge.benchmarks.verify.ladder import Report
from tinyllava_edge.benchmarks.verify.reference_stored import StoredReference

from .faults import FAULTS, Fault

Rows = list[tuple[str, str, str, str]]


@pytest.fixture(scope="module")
def table() -> Iterator[Rows]:
    """Collects what was said of each fault; printed with `pytest -s`."""
    rows: Rows = []
    yield rows
    print("\nfault | first stage that fails | measured | cause said")  # noqa: T201 - the table is the result
    for row in rows:
        print(" | ".join(row))  # noqa: T201


def measured(report: Report) -> str:
    assert report.first_failure is not None
    checks = report.first_failure.checks
    return ", ".join(f"{check.metric} {check.value:.3g}" for check in checks if not check.passed)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.name))
def test_a_fault_is_caught_at_its_stage_with_its_cause(
    fault: Fault, honest: Honest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Rows
) -> None:
    # The reference must not see a patch: what it says is computed before the fault is planted.
    for prompt in honest.reference.prompts:
        honest.reference.greedy(prompt)
        honest.reference.continuation(prompt)
    bundle = fault.plant(honest.bundle, tmp_path / "bundle", monkeypatch)
    report = climb_quickly(bundle, honest.reference, vision=("fp32",), language=(fault.language,))
    first = report.first_failure
    assert first is not None, "the fault was not seen"
    assert (first.stage, fault.cause in first.cause) == (fault.stage, True), first
    assert not report.passed
    table.append((fault.name, first.stage, measured(report), first.cause))


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.stored_stage], ids=lambda fault: str(fault.name))
def test_the_stored_tensors_alone_show_it_too(
    fault: Fault, honest: Honest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = fault.plant(honest.bundle, tmp_path / "bundle", monkeypatch)
    report = climb_quickly(bundle, StoredReference(bundle), vision=("fp32",), language=(fault.language,))
    assert report.first_failure is not None, "the fault was not seen"
    assert report.first_failure.stage == fault.stored_stage, report.first_failure
