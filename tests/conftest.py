"""What every test run shares: one torch thread, repeatable properties, and the rule for hardware tests."""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.runtimes.trt.fake_gpu import FakeGpu

# A test marked `device("tensorrt")` is skipped where its probe says no. On a machine that is there to run it,
# TINYLLAVA_EDGE_REQUIRE=tensorrt,jetson makes that skip a failure.
PROBES: dict[str, Callable[[], bool]] = {
    "tensorrt": lambda: find_spec("tensorrt") is not None,
    "tensorrt-rtx": lambda: find_spec("tensorrt_rtx") is not None,
    "onnxruntime-cuda": lambda: "CUDAExecutionProvider" in _onnxruntime_providers(),
    "cuda": lambda: Path("/dev/nvidiactl").exists() or Path("/dev/nvhost-gpu").exists(),
    "jetson": lambda: Path("/etc/nv_tegra_release").exists(),
}


def _onnxruntime_providers() -> list[str]:
    if find_spec("onnxruntime") is None:
        return []
    import onnxruntime

    providers: list[str] = onnxruntime.get_available_providers()
    return providers


REQUIRED = set(filter(None, os.environ.get("TINYLLAVA_EDGE_REQUIRE", "").split(",")))

hypothesis.settings.register_profile("tinyllava-edge", deadline=None, derandomize=True, max_examples=100)
hypothesis.settings.load_profile("tinyllava-edge")


def pytest_configure() -> None:
    """One thread a test: faster for tiny tensors, and kind to who shares the machine."""
    if find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a device test, with its reason, where the device is not."""
    for mark in item.iter_markers("device"):
        (need,) = mark.args
        if PROBES[need]():
            continue
        if need in REQUIRED:
            pytest.fail(f"{need} is required by TINYLLAVA_EDGE_REQUIRE but was not found")
        pytest.skip(f"needs {need}")


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Iterator[FakeGpu]":
    """A fake GPU with an engine cache of its own; what a test did not free of the GPU fails it."""
    from tests.runtimes.trt.fake_gpu import FakeGpu

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fake = FakeGpu(monkeypatch)
    before = fake.live
    yield fake
    fake.remove()
    assert fake.live == before, f"{fake.live - before} allocations, streams, events or graphs were not freed"
