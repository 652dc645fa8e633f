"""A test for hardware that is not here is skipped with its reason, and fails where it was required."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = """
import pytest

@pytest.mark.device("jetson")
def test_on_a_jetson():
    raise AssertionError("ran without a Jetson")
"""


@pytest.mark.skipif(Path("/etc/nv_tegra_release").exists(), reason="this machine is a Jetson")
@pytest.mark.parametrize(
    ("required", "outcome", "said"),
    [("", 0, "needs jetson"), ("tensorrt,jetson", 1, "jetson is required by TINYLLAVA_EDGE_REQUIRE")],
)
def test_a_skip_says_what_is_needed_and_can_be_forbidden(
    tmp_path: Path, required: str, outcome: int, said: str
) -> None:
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = device(need): hardware\naddopts = -rs\n")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TINYLLAVA_EDGE_REQUIRE": required},
    )
    assert result.returncode == outcome
    assert said in result.stdout
    assert "ran without" not in result.stdout
