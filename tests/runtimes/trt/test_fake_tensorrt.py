"""The fake TensorRT has no name, and no argument, that the real ones have not."""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from tests.runtimes.trt import fake_tensorrt
from tests.runtimes.trt.fake_gpu import FakeGpu
from tests.runtimes.trt.names import has_name, manifests


def public_names(module: Any) -> Iterator[str]:
    for name, value in vars(module).items():
        if (
            not inspect.isclass(value)
            or name.startswith("_")
            or value.__module__.startswith(("typing", "onnx"))
        ):
            continue
        yield name
        members = getattr(value, "__members__", None) or {
            member: None for kind in value.__mro__[:-1] for member in vars(kind) if not member.startswith("_")
        }
        yield from (f"{name}.{member}" for member in members if member != "Severity")


def test_every_name_of_the_fake_is_in_every_real_version() -> None:
    names = set(public_names(fake_tensorrt))
    assert len(names) > 80
    missing = {
        name: [version for version, api in manifests().items() if not has_name(api, name)] for name in names
    }
    assert {name: versions for name, versions in missing.items() if versions} == {}


def test_every_name_of_the_fake_rtx_is_in_the_real_one(gpu: FakeGpu) -> None:
    module = importlib.import_module("tensorrt_rtx")
    api = manifests()["RTX 1.7.1.116"]
    names = set(public_names(module))
    assert {"IRuntimeCache.deserialize", "IRuntimeConfig.set_runtime_cache"} <= names
    assert {"CudaGraphStrategy.WHOLE_GRAPH_CAPTURE", "ICudaEngine.create_runtime_config"} <= names
    assert [name for name in sorted(names) if not has_name(api, name)] == []


@pytest.mark.parametrize(
    "name",
    [
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_tensor_address",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.get_tensor_shape",
        "ICudaEngine.get_tensor_profile_shape",
        "IBuilderConfig.set_timing_cache",
        "IBuilderConfig.create_timing_cache",
        "EngineInspector.get_engine_information",
        "IOptimizationProfile.set_shape",
    ],
)
def test_the_arguments_of_the_fake_are_those_of_the_real_one(name: str) -> None:
    owner, _, member = name.partition(".")
    ours = list(inspect.signature(getattr(getattr(fake_tensorrt, owner), member)).parameters)[1:]
    for version, api in manifests().items():
        texts = api[owner]["members"][member]
        assert any(all(f" {argument}: " in text for argument in ours) for text in texts), (version, texts)
