"""Backends of llama.cpp are loaded from its own folder, once, and from nowhere else."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tinyllava_edge.errors import BackendError
from tinyllava_edge.llamacpp_backends import load_backends


def bindings(folder: Path, counts: list[int], loaded: list[bytes]) -> Any:
    """What llama-cpp-python's module has, with a registry that counts as it is told."""
    ggml = SimpleNamespace(ggml_backend_reg_count=lambda: counts.pop(0), ggml_backend_load=loaded.append)
    extensions = SimpleNamespace(load_shared_library=lambda name, place: ggml)
    return SimpleNamespace(__file__=str(folder / "__init__.py"), _ctypes_extensions=extensions)


def write_variant(folder: Path, name: str, score: int) -> Path:
    """A library that scores every processor alike."""
    source = folder / f"{name}.c"
    source.write_text(f"int ggml_backend_score(void) {{ return {score}; }}")
    path = folder / f"libggml-cpu-{name}.so"
    subprocess.run(["cc", "-shared", "-o", path, source], check=True)
    return path


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_best_backend_without_amx_is_loaded_once_and_from_the_packages_folder(tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    write_variant(folder, "sapphirerapids", 9)
    write_variant(folder, "x64", 1)
    best = write_variant(folder, "zen4", 5)
    write_variant(folder, "alderlake", 0)
    (folder / "libggml-cpu-broken.so").write_bytes(b"no library")
    loaded: list[bytes] = []
    load_backends(bindings(tmp_path, [0, 1], loaded))
    load_backends(bindings(tmp_path, [1], loaded))  # a build that has them inside
    assert loaded == [str(best).encode()]


def test_a_build_without_a_backend_for_this_processor_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    with pytest.raises(BackendError, match=r"lib: no backend .*install --fresh"):
        load_backends(bindings(tmp_path, [0, 0], []))


def test_the_installed_build_has_a_processor_to_compute_on(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    code = (
        "import llama_cpp; from tinyllava_edge.llamacpp_backends import load_backends\n"
        "load_backends(llama_cpp); print(llama_cpp.llama_print_system_info().decode())"
    )
    (tmp_path / "libggml-cpu-evil.so").write_bytes(b"not read: llama.cpp would look in the current directory")
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "CPU : " in said.stdout
    assert "evil" not in said.stderr
