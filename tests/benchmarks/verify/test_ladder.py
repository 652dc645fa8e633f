"""An honest bundle passes at every variant, also of random sizes. CPU, random tiny models."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.benchmarks.conftest import Honest, climb_quickly, write_decided_checkpoint
from tests.opened_files import counted_opens
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge import open_bundle
from tinyllava_edge.benchmarks.verify.climb import chosen_variants, climb, open_reference, planned_stages
from tinyllava_edge.benchmarks.verify.ladder import Check, Ladder, Report, StageResult, judge
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.benchmarks.verify.reference_stored import StoredReference
from tinyllava_edge.benchmarks.verify.stage_language import check_language
from tinyllava_edge.bounds import at_least, at_most
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import BackendError, ContextOverflowError, UsageError
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.gates import STAGES
from tinyllava_edge.runtimes.base import BackendOptions

from .faults import Fault


def test_an_honest_bundle_passes_every_stage_at_every_variant(honest: Honest) -> None:
    report = climb_quickly(Bundle.open(honest.bundle), honest.reference)
    assert report.passed, report.verdict
    assert [result.stage for result in report.results if result.skipped] == []
    done = {(result.stage, result.variant) for result in report.results}
    assert {stage for stage, _ in done} == set(STAGES)
    for stage in ("weights", "metadata", "splice", "logits", "teacher_forced", "greedy"):
        assert {(stage, variant) for variant in ("f32", "f16", "q8_0")} <= done
    assert [variant for stage, variant in sorted(done) if stage == "dequantized"] == ["q8_0"]
    for stage in ("tower", "connector"):
        assert {(stage, "fp32"), (stage, "fp16")} <= done
    assert ("logits", "f32, vision fp16") in done


def test_a_quantized_model_alone_passes_with_every_vision_variant(honest: Honest) -> None:
    report = climb_quickly(Bundle.open(honest.bundle), honest.reference, language=("q8_0",))
    assert report.passed, report.verdict
    assert ("dequantized", "q8_0, vision fp16") in {(r.stage, r.variant) for r in report.results}


def test_config_json_is_read_once_on_the_whole_way_up(honest: Honest) -> None:
    bundle = Bundle.open(honest.bundle)
    with counted_opens(honest.checkpoint / "config.json") as opens:
        reference = open_reference(bundle, Checkpoint(honest.checkpoint), num_tokens=8)
        assert climb_quickly(bundle, reference, vision=("fp32",), language=("f32",)).passed
    assert opens == [1]


def test_the_stored_tensors_pass_and_skip_only_what_needs_the_checkpoint(honest: Honest) -> None:
    bundle = Bundle.open(honest.bundle)
    report = climb_quickly(bundle, StoredReference(bundle))
    assert report.passed, report.verdict
    needs_checkpoint = {"weights", "metadata", "splice", "dequantized"}
    assert {result.stage for result in report.results if result.skipped} == needs_checkpoint


def test_int8_is_run_and_what_only_tensorrt_runs_is_evaluated(honest: Honest, tmp_path: Path) -> None:
    options = ExportOptions(vision=("bf16", "int8", "int8_fp16"), language=("f32",))
    export_bundle(Checkpoint(honest.checkpoint), tmp_path / "bundle", options)
    bundle = Bundle.open(tmp_path / "bundle")
    assert {variant.name: variant.status for variant in bundle.manifest.variants} == {
        "bf16": "built, not run",
        "int8": "verified",
        "int8_fp16": "built, not run",
        "f32": "verified",
    }
    assert bundle.variant("vision").name == "int8"  # the most precise one that was run
    report = climb_quickly(bundle, honest.reference)
    assert report.passed, report.verdict
    details = {(result.stage, result.variant): result.detail for result in report.results}
    for stage in ("tower", "connector"):
        assert "not run" in details[stage, "bf16"]
        assert "not run" in details[stage, "int8_fp16"]
        assert "not run" not in details[stage, "int8"]
    assert ("logits", "f32") in details  # with int8, the only one that a runtime has
    assert not any("bf16" in variant or "fp16" in variant for stage, variant in details if stage == "logits")
    with open_bundle(bundle.root, vision="int8") as model:
        assert "".join(model.chat("What is this?", ["docs/pictures/cat.jpg"], max_tokens=4))
    with pytest.raises(BackendError, match=r"bf16\.onnx: ONNX Runtime cannot load it"):
        open_bundle(bundle.root, vision="bf16")


def test_the_torch_runtime_is_its_own_measure(honest: Honest) -> None:
    bundle = Bundle.open(honest.bundle)
    report = climb(
        Ladder(
            bundle=bundle,
            reference=honest.reference,
            vision=chosen_variants(bundle, "vision", ("fp32",)),
            language=chosen_variants(bundle, "language", ("f32",)),
            runtime="torch",
            num_pictures=2,
            options=BackendOptions(checkpoint=honest.checkpoint),
        )
    )
    assert report.passed, report.verdict
    assert {r.stage for r in report.results if r.skipped} == {"weights", "metadata", "tower", "splice"}


def small_ladder(honest: Honest, *, vision: tuple[str, ...], language: tuple[str, ...]) -> Ladder:
    bundle = Bundle.open(honest.bundle)
    return Ladder(
        bundle=bundle,
        reference=StoredReference(bundle),
        vision=chosen_variants(bundle, "vision", vision),
        language=chosen_variants(bundle, "language", language),
        runtime="onnxruntime+llamacpp",
        num_pictures=1,
        options=BackendOptions(threads=1),
    )


def test_progress_names_every_stage_when_it_begins(honest: Honest) -> None:
    ladder = small_ladder(honest, vision=("fp32", "fp16"), language=("f16", "q8_0"))
    begun: list[str] = []
    climb(ladder, begun.append)
    assert begun == [
        *("weights", "metadata", "text", "pixels", "tower", "connector"),
        *("splice", "logits", "teacher_forced", "greedy"),  # f16 with fp32
        *("splice", "logits", "dequantized", "teacher_forced", "greedy"),  # q8_0 with fp32
        *("logits", "teacher_forced", "greedy"),  # f16 with fp16
    ]
    assert planned_stages(ladder) == begun


def test_a_result_is_of_the_stage_that_was_named_last(honest: Honest) -> None:
    begun: list[str] = []
    for result in check_language(small_ladder(honest, vision=("fp32",), language=("q8_0",)), begun.append):
        assert result.stage == begun[-1]
    assert begun == ["splice", "logits", "dequantized", "teacher_forced", "greedy"]


def test_a_variant_without_gates_fails_its_stages_and_no_other(honest: Honest) -> None:
    ladder = small_ladder(honest, vision=("fp32",), language=("f16",))
    unknown = ladder.language[0].model_copy(update={"name": "mxfp4"})
    assert planned_stages(replace(ladder, language=(unknown,)))[-1] == "greedy"
    (splice, *_) = check_language(replace(ladder, language=(unknown,)), lambda stage: None)
    assert splice.status == "failed"
    assert "mxfp4" in splice.cause


@pytest.fixture(scope="module")
def odd_width(tmp_path_factory: pytest.TempPathFactory) -> Honest:
    """No multiple of 32, so that llama.cpp's quantizer stores what should be Q8_0 as F16."""
    folder = tmp_path_factory.mktemp("odd")
    checkpoint = write_decided_checkpoint(folder / "checkpoint", hidden=48)
    export_bundle(
        Checkpoint(checkpoint), folder / "bundle", ExportOptions(vision=("fp32",), language=("f16", "q8_0"))
    )
    return Honest(checkpoint, folder / "bundle", CheckpointReference(Checkpoint(checkpoint), num_tokens=4))


def splice_of(bundle: Path, reference: CheckpointReference, language: str) -> StageResult:
    opened = Bundle.open(bundle)
    ladder = Ladder(
        bundle=opened,
        reference=reference,
        vision=chosen_variants(opened, "vision", ("fp32",)),
        language=chosen_variants(opened, "language", (language,)),
        runtime="onnxruntime+llamacpp",
        num_pictures=1,
    )
    return next(check_language(ladder, lambda stage: None))


@pytest.mark.parametrize("language", ["f16", "q8_0"])
def test_rows_of_text_stored_in_float16_are_held_against_the_rounded_ones(
    odd_width: Honest, language: str
) -> None:
    splice = splice_of(odd_width.bundle, odd_width.reference, language)
    assert (splice.status, splice.detail) == ("passed", "5 prompts, token embedding F16"), splice
    assert {check.metric: check.value for check in splice.checks}["text_snr_db"] == math.inf


def test_a_prompt_that_fills_the_context_is_one_line(odd_width: Honest) -> None:
    reference = CheckpointReference(Checkpoint(odd_width.checkpoint), num_tokens=4)
    language = replace(reference.config.language, max_position_embeddings=3)
    reference.config = replace(reference.config, language=language)
    with pytest.raises(ContextOverflowError, match=r"has [0-9]+ positions, and the model was made for 3"):
        reference.greedy(reference.prompts[0])


def test_a_row_of_text_that_is_not_the_rounded_one_is_seen(
    odd_width: Honest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(reader: gguf.GGUFReader) -> None:
        (table,) = [tensor.data for tensor in reader.tensors if tensor.name == "token_embd.weight"]
        table[:] = np.nextafter(table, np.float16(np.inf))

    fault = Fault("", "splice", "", None, edit_gguf=change, language="q8_0")
    fault.plant(odd_width.bundle, tmp_path / "bundle", monkeypatch)
    splice = splice_of(tmp_path / "bundle", odd_width.reference, "q8_0")
    assert (splice.status, splice.cause[:20]) == ("failed", "rows of text differ ")


def test_a_runtime_that_answers_without_looking_is_excused_nowhere(honest: Honest) -> None:
    report = climb_quickly(Bundle.open(honest.bundle), honest.reference, runtime="scripted")
    for stage in ("teacher_forced", "greedy"):
        statuses = {result.status for result in report.results if result.stage == stage}
        assert statuses == {"failed"}, stage


def test_a_checkpoint_of_another_bundle_is_refused(honest: Honest, tmp_path: Path) -> None:
    other = write_decided_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="the bundle was made from"):
        open_reference(Bundle.open(honest.bundle), Checkpoint(other))


SIZES = st.fixed_dictionaries(
    {
        "hidden": st.sampled_from([64, 128, 192, 256]),
        "heads": st.sampled_from([2, 4, 8]),
        "kv_heads": st.sampled_from([1, 2]),
        "layers": st.integers(1, 3),
        "tied": st.booleans(),
        "vision_layers": st.just(3),
        "feature_layer": st.sampled_from([-1, -2, -3, 1]),
        "select_strategy": st.sampled_from(["patch", "cls_patch"]),
        "connector": st.sampled_from(["linear", "mlp1x_gelu", "mlp2x_gelu", "mlp3x_gelu"]),
        "aspect": st.sampled_from(["square", "pad"]),
        "seed": st.integers(0, 1000),
    }
)


@pytest.mark.slow
@settings(max_examples=2, deadline=None, phases=[Phase.generate])
@given(sizes=SIZES)
def test_any_llama_with_any_siglip_passes_the_f32_gate(
    sizes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("random")
    checkpoint = write_tiny_checkpoint(folder / "checkpoint", **sizes)
    export_bundle(
        Checkpoint(checkpoint), folder / "bundle", ExportOptions(vision=("fp32",), language=("f32",))
    )
    reference = CheckpointReference(Checkpoint(checkpoint), num_tokens=8)
    report = climb_quickly(Bundle.open(folder / "bundle"), reference)
    assert report.passed, report.verdict
    logits = next(result for result in report.results if result.stage == "logits")
    (nmse,) = [check for check in logits.checks if check.metric == "nmse"]
    assert nmse.gate == at_most("nmse", 1e-10)


def result(stage: str, value: float, variant: str = "") -> StageResult:
    gates = (at_most("nmse", 1.0),)
    return judge(stage, variant, {"nmse": value}, detail="", cause=lambda: f"{stage} is off", gates=gates)


def test_the_first_failure_is_first_in_the_chain_not_in_the_list() -> None:
    results = (result("logits", 2.0), result("tower", 3.0), result("text", 0.5))
    report = Report(runtime="r", reference="t", results=results)
    assert report.first_failure is not None
    assert report.first_failure.stage == "tower"
    assert report.verdict == "different: first at tower (nmse 3, gate <= 1); likely cause: tower is off"


def test_nothing_compared_is_not_a_pass() -> None:
    skipped = StageResult(stage="weights", skipped="needs --checkpoint")
    assert not Report(runtime="r", reference="t", results=(skipped,)).passed


def test_what_is_not_finite_is_spelled_out_in_json() -> None:
    check = Check("snr_db", math.inf, at_least("snr_db", math.inf))  # such as rows of float16
    report = Report(runtime="r", reference="t", results=(StageResult(stage="tower", checks=(check,)),))
    (written,) = json.loads(json.dumps(report.to_json(), allow_nan=False))["stages"][0]["checks"]
    assert (written["value"], written["gate"]["limit"], written["passed"]) == ("inf", "inf", True)
