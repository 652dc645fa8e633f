"""What boards get is resolved for their Pythons; PyPI is asked only where the network may be."""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tools.locks import BOARDS, FOLDER, SOURCE, resolve


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("python", BOARDS)
def test_the_lock_of_a_board_has_what_the_runtimes_import(python: str) -> None:
    lock = pins((FOLDER / f"aarch64-{python}.txt").read_text(encoding="utf-8"))
    assert {"numpy", "onnxruntime", "tokenizers", "pydantic", "pillow", SOURCE, "diskcache"} <= {*lock}
    assert ("exceptiongroup" in lock) == (python == "3.10"), "markers are read for the board's Python"
    assert "torch" not in lock


@pytest.mark.network
@pytest.mark.parametrize("python", BOARDS)
def test_every_dependency_but_llama_cpp_has_a_wheel_for_the_board(python: str) -> None:
    if find_spec("uv") is None:
        pytest.skip("needs uv: pip install uv")
    assert {"numpy", "onnxruntime", SOURCE} <= {*pins(resolve(python, BOARDS[python][1]))}


@pytest.mark.network
def test_a_package_without_a_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("uv") is None:
        pytest.skip("needs uv: pip install uv")
    monkeypatch.setattr("tools.locks.SOURCE", "numpy")  # then llama-cpp-python must be a wheel, and has none
    with pytest.raises(SystemExit, match="llama-cpp-python"):
        resolve("3.12", "2_39")


def test_the_command_says_how_it_is_used() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tools.locks", "--help"], capture_output=True, text=True, check=True
    )
    assert "--check" in result.stdout
