"""Which class a device computes in, and how its gates lie to the CPU's. No model."""

import json
from pathlib import Path

import pytest

from tinyllava_edge.compute_classes import COMPUTED_CLASSES, FLOAT32_CPU, about, llamacpp_class
from tinyllava_edge.gates import gates_of, largest_logit_error
from tinyllava_edge.precisions import LANGUAGE_TYPES

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "compute_gates.json"


# What ggml-cuda.cu and mmf.cu of llama.cpp in llama-cpp-python 0.3.36 do (docs/sources/measuring.md).
@pytest.mark.parametrize(
    ("language", "sm", "compute"),
    [
        ("f32", None, "float32 CPU"),
        ("f32", "6.1", "float32 GPU"),
        ("f32", "7.5", "float32 GPU"),
        ("f32", "8.0", "tf32 GPU"),
        ("f32", "8.7", "tf32 GPU"),
        ("f32", "11.0", "tf32 GPU"),
        ("f16", "6.1", "float32 GPU"),
        ("f16", "7.0", "float32 GPU"),
        ("f16", "7.5", "fp16-accumulating GPU"),
        ("f16", "8.7", "fp16-accumulating GPU"),
        ("f16", "", "fp16-accumulating GPU"),
        ("q4_k_m", "8.7", "tf32 GPU"),
        ("f16", None, "float32 CPU"),
    ],
)
def test_a_class_is_known_by_type_and_compute_capability(language: str, sm: str | None, compute: str) -> None:
    assert llamacpp_class(language, sm) == compute


def test_float16_vectors_of_a_cpu_compute_float16_only() -> None:
    assert llamacpp_class("f16", None, has_float16=True) == "fp16 CPU"
    assert llamacpp_class("f32", None, has_float16=True) == "float32 CPU"


def test_only_other_sums_have_wider_gates_and_emulated_ones_say_so() -> None:
    assert about(FLOAT32_CPU) == ""
    assert "emulated" in about("tf32 GPU")
    for variant in LANGUAGE_TYPES:
        for stage in ("logits", "teacher_forced"):
            assert gates_of(stage, variant, compute="fp16 CPU") == gates_of(stage, variant)
            assert gates_of(stage, variant, compute="float32 GPU") == gates_of(stage, variant)
    for compute, kind in COMPUTED_CLASSES:
        assert largest_logit_error(kind, compute=compute) > largest_logit_error(kind)
        for ours, cpus in zip(
            gates_of("logits", kind, compute=compute), gates_of("logits", kind), strict=True
        ):
            assert ours.limit > cpus.limit


# The worst checkpoint's figures, which the file has; written by the tool, and not by what reads the gates.
@pytest.mark.parametrize(
    ("compute", "kind", "emulations"),
    [
        ("tf32 GPU", "f32", ("tf32, rounded", "tf32, cut")),
        ("fp16-accumulating GPU", "f16", ("fp16, fp16 sums of 16", "fp16, fp16 sums of 4")),
    ],
)
def test_a_gate_is_two_to_ten_times_the_largest_error_that_was_emulated(
    compute: str, kind: str, emulations: tuple[str, ...]
) -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    errors = [sample["nmse"] for row in rows.values() for name in emulations for sample in row.get(name, [])]
    (gate,) = gates_of("logits", kind, compute=compute)  # type: ignore[arg-type]
    assert 2 < gate.limit / max(errors) < 10
    assert len(rows) >= 14
