"""`tune`: what is measured here, and that it is what a model is then opened with."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.core.test_presets import bundle_with, measured, stage
from tinyllava_edge.cli import main
from tinyllava_edge.errors import UsageError
from tinyllava_edge.runtimes.auto import _with_tuned
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.model import open_bundle
from tinyllava_edge.tuned import read_tuned, write_tuned


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_tune_measures_every_variant_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_with(tmp_path, [stage("f16", 0, 1.0), stage("q8_0", 0.001, 1.0)])
    monkeypatch.setattr(sys, "argv", ["tinyllava-edge", "tune", str(bundle.root), "--seconds", "1", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    printed = capsys.readouterr()
    found: dict[str, Any] = json.loads(printed.out)
    assert "a picture" in printed.err  # figures as they come
    assert found["vision_ms"]["onnxruntime"]["fp16"] > 0
    assert found["language"]["llamacpp"].keys() == {"f16", "q8_0"}
    assert [row["preset"] for row in found["presets"]] == ["exact", "balanced", "fast", "small"]
    tuned = read_tuned(bundle)
    assert tuned is not None
    fastest = min(tuned.language["llamacpp"], key=lambda name: tuned.language["llamacpp"][name].total_ms)
    with open_bundle(bundle) as model:
        assert fastest in model.language.name
        assert f"preset balanced: fp16 + {fastest}, KL" in model.runtime_reason


def test_a_tuned_setting_holds_unless_another_is_asked_for(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, None)
    write_tuned(bundle, measured(bundle, 50, 40, threads=1, flash_attention="off"))
    with open_bundle(bundle) as model:
        options = model.language._options  # type: ignore[attr-defined]
        assert (options.threads, options.flash_attention) == (1, "off")
    with open_bundle(bundle, threads=2, flash_attention="on", kv_type="f16") as model:
        options = model.language._options  # type: ignore[attr-defined]
        assert (options.threads, options.flash_attention) == (2, "on")


def test_a_record_of_more_threads_than_cores_is_none(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, None)
    write_tuned(bundle, measured(bundle, 50, 40, threads=99999))  # 17 GB of stacks
    assert read_tuned(bundle) is None


@pytest.mark.parametrize(
    "runtime", ["onnxruntime+llamacpp", "onnxruntime-cuda+llamacpp", "openvino", "torch"]
)
def test_tuned_settings_are_for_llamacpp_on_the_cpu(tmp_path: Path, runtime: str) -> None:
    bundle = bundle_with(tmp_path, None)
    write_tuned(bundle, measured(bundle, 50, 40, threads=1, flash_attention="off"))
    found = _with_tuned(runtime, bundle, BackendOptions())
    is_meant = runtime == "onnxruntime+llamacpp"
    assert (found.threads, found.flash_attention) == ((1, "off") if is_meant else (None, None))


def test_a_runtime_that_is_named_has_no_tuned_settings(tmp_path: Path) -> None:
    """What is compared with others has what it was told to have."""
    bundle = bundle_with(tmp_path, None)
    write_tuned(bundle, measured(bundle, 50, 40, threads=1, flash_attention="off"))
    with open_bundle(bundle, runtime="onnxruntime+llamacpp") as model:
        options = model.language._options  # type: ignore[attr-defined]
        assert (options.threads, options.flash_attention) == (None, None)


def test_a_named_variant_is_taken_whatever_the_preset(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, [stage("f16", 0, 1.0), stage("q8_0", 0.001, 1.0)])
    with open_bundle(bundle, language="f16", preset="small") as model:
        assert " f16," in model.language.name
    with open_bundle(bundle, preset="small") as model:
        assert " q8_0," in model.language.name


def test_a_runtime_without_variants_has_no_preset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="scripted has no variants"):
        open_bundle("nano", runtime="scripted", preset="small")
    with pytest.raises(UsageError, match="preset is 'tiny'; known: exact"):
        open_bundle("nano", preset="tiny")
