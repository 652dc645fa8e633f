"""Every name of TensorRT that our code touches is in the recorded API of each version it supports."""

import re

import pytest

from tests.runtimes.trt.names import (
    CONDITIONAL,
    MODULES,
    ROOT,
    arity,
    collect_all,
    collect_uses,
    has_name,
    manifests,
)

USES = collect_all()


def test_the_manifests_are_of_eight_versions() -> None:
    assert list(manifests()) == [
        "10.3.0",
        "10.7.0",
        "10.13.3.9",
        "10.14.1.48.post1",
        "10.16.1.11",
        "11.0.0.114",
        "11.4.0.106",
        "RTX 1.7.1.116",
    ]


def test_no_name_is_missing_where_it_is_used() -> None:
    missing: dict[str, tuple[str, ...]] = {}
    for name in USES.names:
        without = tuple(version for version, api in manifests().items() if not has_name(api, name))
        if without:
            missing[name] = without
    assert missing == {name: versions for name, (versions, _) in CONDITIONAL.items()}


def test_the_main_names_were_found() -> None:
    """The collector sees what is plainly there: each way of getting at an object of the library."""
    assert {
        "Builder",
        "Builder.create_builder_config",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "OnnxParser.parse_from_file",
        "ParserError.node_operator",
        "INetworkDefinition.get_input",
        "ILayer.get_output",
        "ITensor.dtype",
        "IOptimizationProfile.set_shape",
        "ITimingCache.serialize",
        "IBuilderConfig.set_timing_cache",
        "IProgressMonitor.step_complete",
        "ILogger.log",
        "Runtime.deserialize_cuda_engine",
    } <= USES.names.keys()


def test_no_use_is_out_of_sight() -> None:
    assert USES.unfollowed == {}


def test_every_call_has_the_arguments_of_every_version() -> None:
    checked = 0
    for name, given, keywords, where in USES.calls:
        owner, _, member = name.partition(".")
        for version, api in manifests().items():
            signatures = api.get(owner, {}).get("members", {}).get(member)
            if not isinstance(signatures, list) or any("*args" in text for text in signatures):
                continue
            checked += 1
            fits = []
            for least, most, names in map(arity, signatures):
                fits.append(least <= given + len(keywords) <= most and set(keywords) <= set(names))
            assert any(fits), (
                f"{where}: {name} with {given} arguments and {keywords}, {version}: {signatures}"
            )
    assert checked > 100


def test_a_wrong_name_is_found() -> None:
    source = """
def configure(binding: TensorRT, builder: "trt.Builder") -> None:
    config = builder.create_builder_config()
    config.set_flag(binding.trt.BuilderFlag.FP16)
    config.set_flga(1)
    untyped.set_memory_pool_limit(1)
"""
    uses = collect_uses(source, "sample", {})
    without = [v for v, api in manifests().items() if not has_name(api, "BuilderFlag.FP16")]
    assert without == ["11.0.0.114", "11.4.0.106", "RTX 1.7.1.116"]
    assert not any(has_name(api, "IBuilderConfig.set_flga") for api in manifests().values())
    assert {"BuilderFlag.FP16", "IBuilderConfig.set_flga"} <= uses.names.keys()
    assert uses.unfollowed == {"set_memory_pool_limit": "sample:6"}


@pytest.mark.parametrize("folder", ["tinyllava_edge", "export", "runtimes", "benchmarks"])
def test_every_module_that_touches_the_library_is_listed(folder: str) -> None:
    touching = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*.py")
        if re.search(
            r"(?<!runtimes)(?<! )\.trt\.|\"trt\.[A-Z]|import tensorrt", path.read_text(encoding="utf-8")
        )
    }
    assert touching == {name for name in MODULES if name.startswith(f"{folder}/")}
