"""Lines that install an extra's packages: they name what an index has, for the Python that runs."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllava_edge import extras
from tinyllava_edge.cli import EXTRAS
from tinyllava_edge.extras import install_line
from tinyllava_edge.install import pip
from tinyllava_edge.jetson import Jetson

packaging = pytest.importorskip("packaging.requirements")  # comes with pytest
BOARD = Jetson(model="Orin Nano", l4t="36.4.3", jetpack="6.2", power_mode=None)
EVERY = sorted({*EXTRAS.values(), "gpu", "tensorrt", "tensorrt-rtx", "packs"})


def named(line: str) -> set[str]:
    """Packages of each `pip install` in a line, which must all be requirements that pip reads."""
    found = set()
    for part in line.split(" && "):
        words = shlex.split(part)
        if "uninstall" not in words:
            wanted = [word for word in words[words.index("install") + 1 :] if not word.startswith("-")]
            found |= {packaging.Requirement(word).name for word in wanted}
    return found


@pytest.mark.parametrize("extra", EVERY)
def test_a_line_names_packages_of_an_index_and_not_our_extras(extra: str) -> None:
    line = install_line(extra)
    assert named(line), line
    assert "tinyllava-edge" not in line
    assert pip("install") in line


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("ort", {"onnxruntime"}),
        ("gpu", {"onnxruntime-gpu"}),
        ("packs", {"cryptography"}),
        ("tensorrt", {"tensorrt"}),
        ("tensorrt-rtx", {"tensorrt-rtx-cu13"}),
        ("llamacpp", {"llama-cpp-python"}),
        (
            "torch",
            {
                *("torch", "transformers", "safetensors", "sentencepiece", "protobuf"),
                *("huggingface_hub", "regex"),
            },
        ),
    ],
)
def test_a_line_brings_the_package_that_was_missing(extra: str, packages: set[str]) -> None:
    assert named(install_line(extra)) == packages


def test_an_extra_that_names_others_brings_theirs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyllava_edge.install.is_distribution", lambda *_: False)
    monkeypatch.setattr(extras, "is_distribution", lambda *_: False)
    line = install_line("export")
    assert named(line) >= {"torch", "onnx", "gguf", "onnxruntime", "llama-cpp-python"}
    assert "CMAKE_ARGS=" in line, "llama.cpp is built by the line that suits this machine"


def test_onnxruntime_is_not_put_over_onnxruntime_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "is_distribution", lambda name, _: name == "onnxruntime-gpu")
    assert not any(word.startswith("onnxruntime") for word in shlex.split(install_line("bench")))


def test_a_jetsons_tensorrt_comes_from_apt_and_its_onnxruntime_from_its_own_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extras, "read_jetson", lambda _: BOARD)
    monkeypatch.setattr(extras, "read_python", lambda _: (3, 10))
    assert install_line("tensorrt").startswith("sudo apt-get install -y python3-libnvinfer")
    assert "--index-url https://pypi.jetson-ai-lab.io/jp6/cu126" in install_line("gpu")


def test_a_line_is_for_the_python_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command is often started by its path, and `pip` is then another Python's."""
    (tmp_path / "pip").write_text("#!/bin/sh\n")
    (tmp_path / "pip").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pip("install") == f"{sys.executable} -m pip install"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert pip("install") == "pip install"


def test_a_checkout_that_was_never_installed_names_itself(tmp_path: Path) -> None:
    """As far as pip reads the line: it finds the project and the extra there."""
    root = Path(__file__).parents[2]
    shutil.copytree(
        root / "tinyllava_edge", tmp_path / "c d/tinyllava_edge", ignore=lambda *_: {"nano", "model"}
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tinyllava_edge.extras import install_line as f; "
    )
    command = [sys.executable, "-I", "-S", "-c", code + "print(f('ort'))", str(tmp_path / "c d")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shlex.split(result.stdout)[-2:] == ["--editable", f"{tmp_path}/c d[ort]"]


def test_no_line_of_ours_names_an_extra_of_an_index() -> None:
    root = Path(__file__).parents[2]
    folders = ("tinyllava_edge", "export", "runtimes", "train", "benchmarks", "docs", "examples")
    pages = [path for folder in folders for kind in ("*.py", "*.md") for path in (root / folder).rglob(kind)]
    lines = [line for page in (root / "README.md", *pages) for line in page.read_text("utf-8").splitlines()]
    assert not [line for line in lines if re.search(r"install\b.*[' ]tinyllava-edge\[", line)]
