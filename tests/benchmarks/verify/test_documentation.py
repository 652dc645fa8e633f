"""docs/measuring.md says what the code does. No model."""

from collections.abc import Iterator
from pathlib import Path

from tinyllava_edge.bounds import Gate
from tinyllava_edge.compute_classes import COMPUTED_CLASSES
from tinyllava_edge.gates import STAGES, gates_of
from tinyllava_edge.precisions import DEQUANTIZED, LANGUAGE_CLASSES, PRECISIONS

from .faults import FAULTS

PAGE = (Path(__file__).parents[3] / "docs" / "measuring.md").read_text(encoding="utf-8")


def all_gates() -> Iterator[tuple[str, str, Gate]]:
    """Every (stage, variant, gate)."""
    for stage in ("tower", "connector"):
        for name in PRECISIONS:
            yield from ((stage, name, gate) for gate in gates_of(stage, name))
    for stage in ("splice", "logits", "teacher_forced"):
        for name, known in LANGUAGE_CLASSES.items():
            yield from ((stage, name, gate) for gate in known.gates[stage])
    for (compute, name), known in COMPUTED_CLASSES.items():
        for stage in ("logits", "teacher_forced"):
            yield from ((stage, f"{name}, {compute}", gate) for gate in known.gates[stage])
    yield from (("dequantized", "all that are quantized", gate) for gate in DEQUANTIZED)


def test_every_gate_belongs_to_a_stage() -> None:
    assert {stage for stage, _, _ in all_gates()} <= set(STAGES)


def said(gate: Gate) -> str:
    return f"{gate.metric} {'<=' if gate.kind == 'max' else '>='} {gate.limit:g}"


def test_every_gate_is_in_the_table_of_the_documentation() -> None:
    rows: dict[tuple[str, str], list[str]] = {}
    for stage, variant, gate in all_gates():
        rows.setdefault((stage, variant), []).append(said(gate))
    lines = [f"| {stage} | {variant} | {', '.join(gates)} |" for (stage, variant), gates in rows.items()]
    table = "\n".join(["| stage | variant | gate |", "|---|---|---|", *lines])
    written = PAGE.split("<!-- gates: begin -->\n")[1].split("\n<!-- gates: end -->")[0]
    assert written == table, f"docs/measuring.md should have:\n{table}"


def test_every_stage_and_every_fault_is_documented() -> None:
    for stage in STAGES:
        assert f"\n| {stage} |" in PAGE
    for fault in FAULTS:
        assert fault.name.replace(" connector", "") in PAGE
