"""Packages of this Python, and of a tree that shows another machine."""

from pathlib import Path

import pytest

from tests.core.test_device import write_tree
from tinyllava_edge.installed import find_in_packages, installed_version, is_distribution, read_python

METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: {}\n"


def metadata(place: str, name: str, version: str) -> dict[str, str]:
    return {f"{place}/{name}-{version}.dist-info/METADATA": METADATA.format(name, version)}


def test_here_it_is_what_pip_says() -> None:
    assert installed_version("pytest") == pytest.__version__
    assert installed_version("no-such-package") is None


def test_in_a_tree_an_environment_hides_what_the_system_has(tmp_path: Path) -> None:
    system, own = "usr/lib/python3.10/dist-packages", "home/me/env/lib/python3.10/site-packages"
    write_tree(tmp_path, metadata(system, "numpy", "1.21.5") | metadata(own, "numpy", "2.2.6"))
    write_tree(tmp_path, metadata(system, "tensorrt", "10.3.0") | metadata(own, "llama_cpp_python", "0.3.36"))
    assert installed_version("numpy", tmp_path) == "2.2.6"
    assert installed_version("tensorrt", tmp_path) == "10.3.0"
    assert is_distribution("llama-cpp-python", tmp_path), "one name, however it is spelled"
    assert not is_distribution("pytest", tmp_path), "what is installed here says nothing of it"


@pytest.mark.parametrize(
    ("files", "python"),
    [
        (("usr/lib/python3.8/os.py",), (3, 8)),
        (("usr/lib/python3.10/os.py", "opt/env/lib/python3.12/site-packages/six.py"), (3, 12)),
        ((), None),
    ],
)
def test_the_python_of_a_tree_is_that_of_its_environment(
    tmp_path: Path, files: tuple[str, ...], python: tuple[int, int] | None
) -> None:
    assert read_python(write_tree(tmp_path, dict.fromkeys(files, ""))) == python


def test_files_of_packages_are_found(tmp_path: Path) -> None:
    name = "opt/env/lib/python3.12/site-packages/llama_cpp/lib/libggml-cuda.so"
    write_tree(tmp_path, {name: ""})
    assert find_in_packages("llama_cpp/lib/libggml-cuda*", tmp_path) == [tmp_path / name]
    assert find_in_packages("llama_cpp/lib/libggml-vulkan*", tmp_path) == []
