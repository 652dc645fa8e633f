"""A bundle of dummy files for each test: written once (that waits for the disk), then copied."""

import shutil
from pathlib import Path

import pytest

from tests.core.small_bundle import write_small_bundle


@pytest.fixture(scope="session")
def pristine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("pristine") / "bundle")


@pytest.fixture
def root(pristine_bundle: Path, tmp_path: Path) -> Path:
    """The directory of a bundle that the test may spoil."""
    return Path(shutil.copytree(pristine_bundle, tmp_path / "bundle"))
