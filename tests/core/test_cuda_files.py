"""CUDA by its files, in trees as NVIDIA's packages and wheels leave them."""

from pathlib import Path

import pytest

from tests.core.test_device import write_tree
from tinyllava_edge.cuda_files import CudaFiles, Library, driver_runs, read_cuda_files

LIB = "usr/local/cuda-12.6/targets/aarch64-linux/lib"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.delenv("CUDACXX", raising=False)


def test_links_to_one_library_are_one_library(tmp_path: Path) -> None:
    write_tree(tmp_path, {f"{LIB}/libcudart.so.12.6.68": "", "usr/local/cuda-12.6/bin/nvcc": ""})
    for name in ("libcudart.so.12", "libcudart.so"):
        (tmp_path / LIB / name).symlink_to("libcudart.so.12.6.68")
    (tmp_path / "usr/local/cuda").symlink_to("cuda-12.6")
    found = read_cuda_files(tmp_path)
    assert [one.version for one in found.runtimes] == ["12.6.68"]
    assert (found.nvcc, found.nvcc_version) == ("/usr/local/cuda/bin/nvcc", "12.6")


def test_the_toolkits_own_word_on_its_version_counts(tmp_path: Path) -> None:
    json = '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}'
    write_tree(tmp_path, {"usr/local/cuda-12.6/bin/nvcc": "", "usr/local/cuda-12.6/version.json": json})
    assert read_cuda_files(tmp_path).nvcc_version == "12.6.11"


def test_a_wheels_libraries_and_the_newest_cudnn_are_found(tmp_path: Path) -> None:
    place = "opt/env/lib/python3.12/site-packages/nvidia"
    names = ("cuda_runtime/lib/libcudart.so.12", "cu13/lib/libcudart.so.13", "cudnn/lib/libcudnn.so.9")
    write_tree(tmp_path, {f"{place}/{name}": "" for name in names})
    write_tree(
        tmp_path, {"usr/lib/x86_64-linux-gnu/libcudnn.so.8.9.7": "", f"{place}/cu13/lib/libcudart.so.x": ""}
    )
    found = read_cuda_files(tmp_path)
    assert {one.major for one in found.runtimes} == {12, 13}
    assert found.cudnn == Library(path=f"/{place}/cudnn/lib/libcudnn.so.9", version="9")


@pytest.mark.parametrize(
    "place",
    [
        "usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1",
        "usr/lib/x86_64-linux-gnu/libcuda.so.1",
        "usr/lib/wsl/lib/libcuda.so.1",
        "usr/lib/wsl/drivers/nv_dispi.inf_amd64_1/libcuda.so.1.1",
    ],
)
def test_the_drivers_library_is_found_where_each_system_has_it(tmp_path: Path, place: str) -> None:
    assert read_cuda_files(write_tree(tmp_path, {place: ""})).driver == f"/{place}"


def test_an_empty_tree_has_no_cuda(tmp_path: Path) -> None:
    nothing = CudaFiles(nvcc=None, nvcc_version=None, runtimes=(), cudnn=None, driver=None)
    assert read_cuda_files(tmp_path) == nothing


@pytest.mark.parametrize(
    ("driver", "major", "runs"),
    [
        ("525.60.13", 12, True),
        ("525.60.11", 12, False),
        ("535.129.03", 13, False),
        ("580.65.06", 13, True),
        (None, 13, True),
        ("470.1", 14, True),  # unknown to us: its own loader has the last word
    ],
)
def test_a_driver_is_new_enough_as_the_release_notes_say(driver: str | None, major: int, runs: bool) -> None:
    """Minimum drivers on Linux: CUDA 12 525.60.13, CUDA 13 580.65.06."""
    assert driver_runs(driver, major) == runs
