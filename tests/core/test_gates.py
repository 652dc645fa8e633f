"""The gates are the numbers that were decided, and behave like bounds. No model."""

import math

import pytest

from tinyllava_edge.bounds import at_least, at_most
from tinyllava_edge.errors import BundleError
from tinyllava_edge.gates import gates_of, largest_logit_error, least_snr_db, widened
from tinyllava_edge.precisions import (
    ALL_LANGUAGE_TYPES,
    LANGUAGE_CLASSES,
    LANGUAGE_TYPES,
    OPENVINO_TYPES,
    PRECISIONS,
    TENSOR_SNR_DB,
)


def limits(stage: str, variant: str) -> dict[str, float]:
    return {gate.metric: gate.limit for gate in gates_of(stage, variant)}


def test_the_limits_are_those_of_the_specification() -> None:
    assert limits("tower", "fp32") == {"nmse": 1e-8, "min_token_cosine": 0.99999, "within": 0.999}
    assert limits("connector", "fp32") == {**limits("tower", "fp32"), "connector_nmse": 1e-11}
    assert limits("connector", "fp16")["snr_db"] == 40
    assert limits("connector", "fp16")["min_token_cosine"] == 0.999
    assert limits("connector", "bf16") == {"snr_db": 30, "min_token_cosine": 0.997}
    assert limits("connector", "int8") == {"snr_db": 20, "mean_token_cosine": 0.99}
    assert limits("logits", "f32") == {"nmse": 1e-10}
    assert limits("logits", "f16") == {"nmse": 1e-4}
    assert limits("teacher_forced", "f16")["mean_kld"] == 1e-3
    assert limits("teacher_forced", "q8_0") == {"mean_kld": 5e-3, "p99_kld": 0.05, "top1_agreement": 0.96}
    assert limits("teacher_forced", "q6_k")["mean_kld"] == 0.015
    assert limits("teacher_forced", "q5_k_m")["mean_kld"] == 0.03
    assert limits("teacher_forced", "q4_k_m")["mean_kld"] == 0.08
    assert limits("teacher_forced", "q4_k_m")["top1_agreement"] == 0.88


def test_a_limit_itself_passes_and_nan_never_does() -> None:
    assert at_most("nmse", 1e-8).passes(1e-8)
    assert not at_most("nmse", 1e-8).passes(1.01e-8)
    assert at_least("snr_db", 40).passes(40)
    assert at_least("snr_db", 40).passes(math.inf)
    assert not at_least("snr_db", 40).passes(39.9)
    assert not at_most("nmse", 1).passes(math.nan)
    assert not at_least("snr_db", 1).passes(math.nan)


def test_coarser_quantization_is_never_gated_tighter() -> None:
    order = ["f32", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"]
    means = [limits("teacher_forced", variant)["mean_kld"] for variant in order]
    assert means == sorted(means)


def test_what_the_cpu_does_not_round_is_held_to_the_same_gates_once_more_where_it_is_rounded() -> None:
    plain = {name: limit for name, limit in limits("connector", "fp16").items() if "rounded" not in name}
    assert limits("connector", "fp16") == {**plain, **{f"rounded_{name}": plain[name] for name in plain}}
    assert limits("tower", "int8_fp16")["max_activation"] == 65504 / 2


def test_every_class_of_language_types_is_some_types() -> None:
    assert set(LANGUAGE_TYPES.values()) == set(LANGUAGE_CLASSES) >= set(OPENVINO_TYPES.values())


@pytest.mark.parametrize("variant", ALL_LANGUAGE_TYPES)
def test_every_language_type_that_export_offers_is_gated(variant: str) -> None:
    assert {gate.metric for gate in gates_of("teacher_forced", variant)} >= {"mean_kld", "top1_agreement"}
    assert largest_logit_error(variant) > 0
    for stage in ("splice", "logits"):
        gates_of(stage, variant)  # quantized: no gate of its own, and known


@pytest.mark.parametrize("variant", PRECISIONS)
def test_every_vision_precision_that_export_offers_is_gated(variant: str) -> None:
    assert gates_of("tower", variant)
    assert gates_of("connector", variant)


@pytest.mark.parametrize(
    ("stage", "variant"), [("tower", "fp8"), ("connector", "q8_0"), ("logits", "q9_9"), ("splice", "fp32")]
)
def test_a_variant_without_gates_is_refused_not_passed(stage: str, variant: str) -> None:
    with pytest.raises(BundleError, match=f"{variant!r} has no gates at stage {stage}"):
        gates_of(stage, variant)


def test_a_tensor_type_without_a_gate_is_refused() -> None:
    with pytest.raises(BundleError, match="IQ1_S have no gate"):
        least_snr_db("IQ1_S")
    assert min(TENSOR_SNR_DB.values()) > 0  # all zeros are 0 dB


def test_a_gate_is_widened_by_what_the_weights_cost_and_never_tightened() -> None:
    gates = gates_of("teacher_forced", "q8_0")
    assert widened(gates, {"mean_kld": 1e-3, "p99_kld": 1e-2, "top1_agreement": 0.99}) == gates
    random = widened(gates, {"mean_kld": 4e-3, "p99_kld": 0.02, "top1_agreement": 0.95})
    assert [gate.limit for gate in random] == pytest.approx([0.016, 0.08, 0.80])


def test_a_greedy_answer_is_excused_by_at_most_a_few_times_what_nano_measured() -> None:
    for variant, measured in (("f32", 6.7e-5), ("f16", 8.4e-3), ("q8_0", 0.20), ("q4_k_m", 0.82)):
        assert 2 < largest_logit_error(variant) / measured < 6
