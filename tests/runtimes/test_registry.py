"""Every name in the tables leads somewhere, or says what to install."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.runtimes import bundles
from tinyllava_edge.errors import BundleError, MissingExtraError, UsageError
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
    with pytest.raises(
        UsageError, match=r"auto, tensorrt\+llamacpp, .*onnxruntime\+llamacpp, .*, torch, scripted"
    ):
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
