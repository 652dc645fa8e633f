"""What every test run shares: one torch thread, repeatable properties, and the rule for hardware tests."""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest

# A test marked `device("tensorrt")` is skipped where its probe says no. On a machine that is there to run it,
# TINYLLAVA_EDGE_REQUIRE=tensorrt,jetson makes that skip a failure.
PROBES: dict[str, Callable[[], bool]] = {
    "tensorrt": lambda: find_spec("tensorrt") is not None,
    "tensorrt-rtx": lambda: find_spec("tensorrt_rtx") is not None,
    "cuda": lambda: Path("/dev/nvidiactl").exists() or Path("/dev/nvhost-gpu").exists(),
    "jetson": lambda: Path("/etc/nv_tegra_release").exists(),
}
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
