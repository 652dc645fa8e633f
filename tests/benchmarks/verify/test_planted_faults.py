"""Every planted fault is caught at its stage, and its cause is said: with the gates of every compute class.

A random tiny model on the CPU; a GPU's gates are taken by name, as no GPU is at hand.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.conftest import Honest, climb_quickly
from tinyllava_edge.benchmarks.verify.ladder import Report
from tinyllava_edge.benchmarks.verify.reference_stored import StoredReference
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.compute_classes import FLOAT32_CPU, ComputeClass

from .faults import FAULTS, Fault

COMPUTE_CLASSES: tuple[ComputeClass, ...] = (FLOAT32_CPU, "tf32 GPU", "fp16-accumulating GPU")
EACH_CLASS = [c if c == FLOAT32_CPU else pytest.param(c, marks=pytest.mark.long) for c in COMPUTE_CLASSES]
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


def computed_as(compute: ComputeClass, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> Fault:
    """The fault in the file whose gates the class has; llama.cpp says that it is of that class."""
    monkeypatch.setattr("tinyllava_edge.runtimes.llamacpp.llamacpp_class", lambda *_, **__: compute)
    is_moved = compute == "fp16-accumulating GPU" and fault.language == "f32"
    return replace(fault, language="f16") if is_moved else fault


@pytest.mark.parametrize("compute", EACH_CLASS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.name))
def test_a_fault_is_caught_at_its_stage_with_its_cause(
    fault: Fault,
    compute: ComputeClass,
    honest: Honest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    table: Rows,
) -> None:
    fault = computed_as(compute, fault, monkeypatch)
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
    table.append((f"{fault.name}, {compute}", first.stage, measured(report), first.cause))


@pytest.mark.parametrize("compute", EACH_CLASS)
@pytest.mark.parametrize("fault", [f for f in FAULTS if f.stored_stage], ids=lambda fault: str(fault.name))
def test_the_stored_tensors_alone_show_it_too(
    fault: Fault, compute: ComputeClass, honest: Honest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault.needs_float32 and compute != FLOAT32_CPU:
        pytest.skip("its error is below what 10 bits of mantissa round")
    fault = computed_as(compute, fault, monkeypatch)
    bundle = fault.plant(honest.bundle, tmp_path / "bundle", monkeypatch)
    report = climb_quickly(bundle, StoredReference(bundle), vision=("fp32",), language=(fault.language,))
    assert report.first_failure is not None, "the fault was not seen"
    assert report.first_failure.stage == fault.stored_stage, report.first_failure


def test_a_report_names_the_class_and_that_its_gates_are_emulated(
    honest: Honest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllava_edge.runtimes.llamacpp.llamacpp_class", lambda *_, **__: "tf32 GPU")
    report = climb_quickly(Bundle.open(honest.bundle), honest.reference, vision=("fp32",), language=("f32",))
    (logits,) = [result for result in report.results if result.stage == "logits"]
    assert "tf32 GPU, emulated" in logits.detail
    assert [check.gate.limit for check in logits.checks if check.gate] == [1.3e-4]
    assert report.passed, report.verdict
