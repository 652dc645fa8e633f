"""Every name in the tables leads somewhere, or says what to install."""

import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.runtimes import bundles
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.device import Memory, read_cpu
from tinyllava_edge.errors import BackendError, BundleError, MissingExtraError, UsageError
from tinyllava_edge.runtimes import registry
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.model import open_bundle


@pytest.mark.parametrize("name", registry.VISION_BACKENDS)
def test_every_vision_backend_imports_or_names_its_extra(name: str) -> None:
    if registry.VISION_BACKENDS[name].is_installed:
        assert callable(registry.vision_opener(name))
    else:
        with pytest.raises(MissingExtraError, match=r"needs the package \w+: .*pip install '[\w-]+[<>]"):
            registry.vision_opener(name)


@pytest.mark.parametrize("name", registry.LANGUAGE_BACKENDS)
def test_every_language_backend_imports_or_names_its_extra(name: str) -> None:
    if registry.LANGUAGE_BACKENDS[name].is_installed:
        assert callable(registry.language_opener(name))
    else:
        with pytest.raises(MissingExtraError, match=r"needs the package \w+: .*pip install '[\w-]+[<>]"):
            registry.language_opener(name)


def test_every_runtime_is_a_pair_of_known_backends() -> None:
    for vision, language in registry.RUNTIMES.values():
        assert vision in registry.VISION_BACKENDS
        assert language in registry.LANGUAGE_BACKENDS
    assert set(registry.AUTO_ORDER) <= set(registry.RUNTIMES)


def test_every_extra_is_one_of_ours() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    lines = project.read_text().splitlines()
    for entry in (*registry.VISION_BACKENDS.values(), *registry.LANGUAGE_BACKENDS.values()):
        assert not entry.extra or any(line.startswith(f"{entry.extra} = [") for line in lines)


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages look not installed."""
    monkeypatch.setattr(
        "tinyllava_edge.runtimes.registry.find_spec",
        lambda name: None if name in packages else find_spec(name),
    )


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "llama_cpp")
    with pytest.raises(MissingExtraError, match=r"llama_cpp: CMAKE_.* pip install .*llama-cpp-python=="):
        registry.language_opener("llamacpp")


def test_auto_takes_the_first_runtime_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("torch") is None:
        pytest.skip("needs torch")
    assert registry.choose_runtime("auto") == "onnxruntime+llamacpp"
    hide(monkeypatch, "onnxruntime")
    assert registry.choose_runtime("auto") == "torch"
    hide(monkeypatch, "onnxruntime", "torch")
    assert registry.choose_runtime("auto") == "onnxruntime+llamacpp"  # never the scripted one


@pytest.mark.parametrize("name", ["onnxruntime", "ONNXRUNTIME+LLAMACPP", "tensorflow", ""])
def test_an_unknown_runtime_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match=r"auto, tensorrt\+llamacpp, .*onnxruntime\+llamacpp, .*, torch\.$"):
        registry.choose_runtime(name)


@pytest.mark.parametrize(
    ("option", "value"), [("kv_type", "q3"), ("context_length", 0), ("threads", 0), ("context_length", 2000)]
)
def test_an_option_no_runtime_has_is_refused(tmp_path: Path, option: str, value: object) -> None:
    bundle = bundles.write_bundle(tmp_path / "bundle")
    for runtime in ("onnxruntime+llamacpp", "scripted"):
        with pytest.raises(UsageError, match=str(value)):
            open_bundle(bundle.root, runtime=runtime, **{option: value})  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    "option", [{"checkpoint": "somewhere"}, {"sources": "somewhere"}, {"allow_pickle": True}]
)
@pytest.mark.parametrize("runtime", ["onnxruntime+llamacpp", "scripted"])
def test_an_option_of_the_checkpoint_is_refused_where_none_is_read(
    tmp_path: Path, runtime: str, option: dict[str, Any]
) -> None:
    bundle = bundles.write_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match="reads no checkpoint"):
        open_bundle(bundle, runtime=runtime, **option)


def test_the_scripted_runtime_has_the_bundles_variants_and_no_kv_type(tmp_path: Path) -> None:
    bundle = bundles.write_bundle(tmp_path / "bundle")
    open_bundle(bundle, runtime="scripted", vision="fp32", language="f32").close()
    with pytest.raises(BundleError, match="no vision variant 'fp8'"):
        open_bundle(bundle, runtime="scripted", vision="fp8")
    with pytest.raises(BundleError, match="no language variant 'q2'"):
        open_bundle(bundle, runtime="scripted", language="q2")
    with pytest.raises(UsageError, match="no q8_0 KV cache"):
        open_bundle(bundle, runtime="scripted", kv_type="q8_0")


def test_llamacpp_keeps_its_cache_in_f16_unless_told_otherwise(tmp_path: Path) -> None:
    bundle = bundles.write_bundle(tmp_path / "bundle")
    for kv_type, name in ((None, "f16 KV"), ("f32", "f32 KV")):
        with open_bundle(bundle, kv_type=kv_type, threads=1) as model:
            assert name in model.language.name


def test_when_the_second_half_does_not_open_the_first_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles.write_bundle(tmp_path / "bundle")
    ort = sys.modules["tinyllava_edge.runtimes.ort"]
    closed: list[object] = []
    monkeypatch.setattr(ort.OnnxVision, "close", lambda backend: closed.append(backend))
    with pytest.raises(BundleError, match="q5_k"):
        registry.open_backends("onnxruntime+llamacpp", bundle, BackendOptions(language="q5_k"))
    assert len(closed) == 1


def test_both_halves_open_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, meeting = bundles.write_bundle(tmp_path / "bundle"), threading.Barrier(2)
    for name in ("vision_opener", "language_opener"):
        really = getattr(registry, name)("onnxruntime" if name == "vision_opener" else "llamacpp")

        def meets(bundle: Bundle, options: BackendOptions, really: Any = really) -> Any:
            meeting.wait(timeout=30)  # breaks where the other half waits for this one to end
            return really(bundle, options)

        monkeypatch.setattr(registry, name, lambda _, meets=meets: meets)
    monkeypatch.setattr(registry, "opens_side_by_side", lambda *_: True)
    with open_bundle(bundle, runtime=registry.CPU_RUNTIME, threads=1) as model:
        assert model.ask("What is this?", max_tokens=2) is not None


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("fails", ["vision", "language", "both", "afterwards"])
def test_a_half_that_fails_closes_the_other_one_and_says_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool, fails: str
) -> None:
    closed: list[str] = []

    def opener(part: str, pause: float) -> Any:
        def open_half(bundle: Bundle, options: BackendOptions) -> Any:
            time.sleep(pause)
            if fails in (part, "both"):
                raise BackendError(f"{part} fails")
            return Mock(close=lambda: closed.append(part))

        return lambda name: open_half

    bundle = bundles.write_bundle(tmp_path / "bundle")
    monkeypatch.setattr(registry, "opens_side_by_side", lambda *_: beside)
    monkeypatch.setattr(registry, "vision_opener", opener("vision", 0))
    monkeypatch.setattr(registry, "language_opener", opener("language", 0.05))
    if fails == "afterwards":
        monkeypatch.setattr(type(bundle), "check_unchanged", Mock(side_effect=BackendError("both fails")))
    first = {"language": "language", "vision": "vision", "both": "vision", "afterwards": "both"}[fails]
    with pytest.raises(BackendError, match=f"{first} fails"):
        registry.open_backends(registry.CPU_RUNTIME, bundle, BackendOptions())
    opened = {"vision": ["language"] * beside, "language": ["vision"], "both": []}
    assert closed == opened.get(fails, ["vision", "language"] if beside else ["language", "vision"])


def test_halves_open_one_after_the_other_for_a_gpu_one_core_or_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles.write_bundle(tmp_path / "bundle")
    cpu, plenty = replace(read_cpu(), usable_cores=2), Memory(total_bytes=1 << 34, available_bytes=1 << 34)
    monkeypatch.setattr(registry, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(registry, "read_cpu", lambda: cpu)
    monkeypatch.setattr(registry, "read_memory", lambda: plenty)
    assert registry.opens_side_by_side("onnxruntime+llamacpp", bundle)
    assert not registry.opens_side_by_side("torch", bundle)
    for name, value in {
        "has_nvidia_gpu": True,
        "read_cpu": replace(cpu, usable_cores=1),
        "read_memory": replace(
            plenty, available_bytes=bundle.variant_bytes(bundle.variant("vision", "fp32"))
        ),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(registry, name, lambda value=value: value)
            assert not registry.opens_side_by_side("onnxruntime+llamacpp", bundle)
