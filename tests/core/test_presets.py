"""Which variants are taken where nobody names them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.errors import UsageError
from tinyllava_edge.presets import BOUND, PRESETS, choose_pair, no_pair, pairs
from tinyllava_edge.tuned import FOLDER, Tuned, machine_key, read_tuned, write_tuned

RUNTIME = "onnxruntime+llamacpp"
BACKENDS = ("onnxruntime", "llamacpp")
TARGETS = ("onnx", "gguf")


def bundle_with(tmp_path: Path, stages: list[dict[str, Any]] | None, **names: list[str]) -> Bundle:
    """The shipped bundle (fp16; f16, q8_0) with a result of `verify`."""
    root = tmp_path / "bundle"
    shutil.copytree(bundle_path("nano"), root)
    bundle = Bundle.open(root)
    if stages is not None:
        compared = {"vision": ["fp16"], "language": ["f16", "q8_0"], **names}
        record = {"manifest_sha256": bundle.manifest_sha256, "passed": True, "variants": compared}
        path = root / "parity" / f"{RUNTIME}.json"
        path.write_text(json.dumps({**record, "stages": stages}))
    return bundle


def stage(variant: str, mean_kld: float, top1: float, name: str = "teacher_forced", **more: Any) -> Any:
    checks = [{"metric": "mean_kld", "value": mean_kld}, {"metric": "top1_agreement", "value": top1}]
    return {"stage": name, "variant": variant, "status": "passed", "checks": checks, **more}


def chosen(bundle: Bundle, preset: str, tuned: Tuned | None = None) -> str:
    pair = choose_pair(preset, pairs(bundle, RUNTIME, BACKENDS, TARGETS, tuned))
    return "most precise" if pair is None else f"{pair.vision.name} + {pair.language.name}"


def test_without_a_result_of_verify_the_most_precise_is_taken(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, None)
    assert {preset: chosen(bundle, preset) for preset in PRESETS} == dict.fromkeys(PRESETS, "most precise")
    assert no_pair("balanced", pairs(bundle, RUNTIME, BACKENDS, TARGETS)).endswith(
        "verify --checkpoint has compared none"
    )


@pytest.mark.parametrize(
    ("mean_kld", "top1", "balanced"),
    [
        (0.01, 0.95, "fp16 + q8_0"),  # at the bound
        (0.0101, 1.0, "fp16 + f16"),
        (0.0, 0.949, "fp16 + f16"),
        (float("nan"), 1.0, "fp16 + f16"),
    ],
)
def test_the_default_is_the_fastest_within_the_bound(
    tmp_path: Path, mean_kld: float, top1: float, balanced: str
) -> None:
    value: Any = "nan" if mean_kld != mean_kld else mean_kld
    bundle = bundle_with(tmp_path, [stage("f16", 1e-7, 1.0), stage("q8_0", value, top1)])
    assert chosen(bundle, "balanced") == balanced
    assert chosen(bundle, "exact") == "most precise"


def test_nothing_within_the_bound_is_the_most_precise(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, [stage("f16", 0.2, 0.7), stage("q8_0", 0.3, 0.7)])
    assert chosen(bundle, "balanced") == "most precise"
    assert chosen(bundle, "small") == chosen(bundle, "fast") == "fp16 + q8_0"
    assert no_pair("balanced", pairs(bundle, RUNTIME, BACKENDS, TARGETS)).endswith("none is within the bound")


def test_what_failed_at_any_stage_is_never_chosen(tmp_path: Path) -> None:
    stages = [stage("f16", 0, 1.0), stage("q8_0", 0, 1.0), stage("q8_0", 0, 1.0, "weights", status="failed")]
    bundle = bundle_with(tmp_path, stages)
    assert [chosen(bundle, preset) for preset in ("balanced", "fast", "small")] == ["fp16 + f16"] * 3


def test_both_costs_are_added_up(tmp_path: Path) -> None:
    stages = [
        stage("f16", 0.001, 1.0),
        stage("q8_0", 0.006, 0.98),
        stage("f16, vision fp16", 0.005, 0.99),  # the first vision variant was another one
    ]
    bundle = bundle_with(tmp_path, stages, vision=["fp32", "fp16"])
    found = {pair.language.name: pair for pair in pairs(bundle, RUNTIME, BACKENDS, TARGETS)}
    assert found["q8_0"].mean_kld == pytest.approx(0.011)
    assert found["q8_0"].top1_agreement == pytest.approx(0.97)
    assert found["f16"].mean_kld == pytest.approx(0.005)
    assert chosen(bundle, "balanced") == "fp16 + f16"


def test_a_variant_that_was_not_compared_is_unknown(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, [stage("f16", 0, 1.0)], language=["f16"])
    assert [chosen(bundle, preset) for preset in ("balanced", "fast", "small")] == ["fp16 + f16"] * 3


def test_a_damaged_result_is_none(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, [stage("q8_0", 0, 1.0)])
    (bundle.root / "parity" / f"{RUNTIME}.json").write_text("{")
    assert chosen(bundle, "balanced") == "most precise"


def measured(bundle: Bundle, f16_ms: float, q8_0_ms: float, **changes: Any) -> Tuned:
    speeds = {name: {"prefill_ms": ms, "decode_ms": 1.0} for name, ms in (("f16", f16_ms), ("q8_0", q8_0_ms))}
    values = {
        "manifest_sha256": bundle.manifest_sha256,
        "machine": machine_key(),
        "prompt_positions": 100,
        "vision_ms": {"onnxruntime": {"fp16": 5.0}},
        "language": {"llamacpp": speeds},
    }
    return Tuned.model_validate({**values, **changes})


@pytest.mark.parametrize(("f16_ms", "q8_0_ms", "taken"), [(50, 40, "fp16 + q8_0"), (30, 40, "fp16 + f16")])
def test_what_was_measured_here_counts_more_than_bytes(
    tmp_path: Path, f16_ms: float, q8_0_ms: float, taken: str
) -> None:
    bundle = bundle_with(tmp_path, [stage("f16", 0, 1.0), stage("q8_0", 0.001, 1.0)])
    tuned = measured(bundle, f16_ms, q8_0_ms)
    assert chosen(bundle, "balanced", tuned) == taken
    assert tuned.request_ms(BACKENDS, "fp16", "f16") == 5 + f16_ms + 31
    assert tuned.request_ms(BACKENDS, "int8", "f16") is None


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'tiny'\. Known: exact, balanced, fast, small"):
        choose_pair("tiny", [])


def test_the_bound_is_the_documented_one() -> None:
    page = (Path(__file__).parents[2] / "docs/presets.md").read_text(encoding="utf-8")
    said = [f"{gate.metric} {'<=' if gate.kind == 'max' else '>='} {gate.limit:g}" for gate in BOUND]
    assert all(f"`{each}`" in page for each in said)


class TestTuned:
    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def test_a_record_is_read_back(self, tmp_path: Path) -> None:
        bundle = bundle_with(tmp_path, None)
        assert read_tuned(bundle) is None
        tuned = measured(bundle, 50, 40, threads=1)
        path = write_tuned(bundle, tuned)
        assert path.parent.name == FOLDER
        assert read_tuned(bundle) == tuned

    @pytest.mark.parametrize("change", [{"machine": "another"}, {"manifest_sha256": "0" * 64}])
    def test_one_of_another_machine_or_bundle_is_none(self, tmp_path: Path, change: dict[str, str]) -> None:
        bundle = bundle_with(tmp_path, None)
        write_tuned(bundle, measured(bundle, 50, 40, **change))
        assert read_tuned(bundle) is None

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"threads": -1}', "\0" * 2_000_000])
    def test_a_damaged_one_is_none(self, tmp_path: Path, text: str) -> None:
        bundle = bundle_with(tmp_path, None)
        write_tuned(bundle, measured(bundle, 50, 40)).write_text(text)
        assert read_tuned(bundle) is None

    def test_one_that_others_can_write_is_none(self, tmp_path: Path) -> None:
        bundle = bundle_with(tmp_path, None)
        write_tuned(bundle, measured(bundle, 50, 40)).chmod(0o666)
        assert read_tuned(bundle) is None
