"""What `doctor --root DIR` says of machines that nobody here has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.test_device import write_tree
from tests.runtimes import device_trees
from tests.runtimes.device_trees import TREES, Files
from tests.runtimes.write_doctor_trees import PAGE, page
from tests.test_cli import assert_one_line
from tinyllava_edge.runtimes.doctor import Report, examine

# Which runtimes a tree's files speak for, of those that bring pictures and answers to a device.
USABLE = {
    "as docs/jetson.md leaves it": {"tensorrt", "onnxruntime-cuda", "onnxruntime"},
    "just flashed": set(),
    "with wheels for the CPU": {"tensorrt", "onnxruntime"},
    "JetPack 7.2": {"tensorrt", "onnxruntime-cuda", "onnxruntime"},
    "without cuDNN": {"tensorrt", "onnxruntime-cuda", "onnxruntime"},
    "Thor": {"tensorrt", "onnxruntime-cuda", "onnxruntime"},
    "JetPack 5": set(),
    "nobody knows": set(),
    "without --runtime nvidia": {"onnxruntime"},
    "none of the board's files": {"tensorrt", "onnxruntime"},
    "with a GeForce card": {"tensorrt-rtx", "onnxruntime-cuda", "onnxruntime"},
    "too old": {"onnxruntime"},
    "WSL2 without": {"onnxruntime"},
    "without a card": {"onnxruntime"},
}
# Every problem of a tree begins so, in this order.
PROBLEMS = {
    "as docs/jetson.md leaves it": (),
    "just flashed": ("CmaTotal is 256 MiB", "no swap, and 8 GB or less", "power mode is 15W"),
    "with wheels for the CPU": (
        "llama.cpp: CPU build, a GPU is there: CUDACXX=/usr/local/cuda-12.6/bin/nvcc",
        "2 CUDA runtimes: 13 (",
        "CUDA 13 (/home/user/tinyllava/lib/python3.10/site-packages/nvidia/cu13/lib/libcudart.so.13) is not",
    ),
    "JetPack 7.2": (),
    "without cuDNN": ("clocks follow the load", "onnxruntime-gpu needs cuDNN 9, and no cuDNN was found"),
    "Thor": ("power mode is 120W", "no power rail can be read"),
    "JetPack 5": ("L4T 35.4.1 is JetPack 5 or older", "no power rail can be read"),
    "nobody knows": (
        "L4T 41.1.2 is in no table",
        "the chip tegra301 is unknown",
        "no power rail can be read",
    ),
    "without --runtime nvidia": (
        "which L4T this is cannot be told",
        "no power rail can be read",
        "tegrastats is not here",
    ),
    "none of the board's files": (
        "llama.cpp: CPU build, a GPU is there: sudo apt-get install -y g++ && CUDACXX=/usr/local/cuda-12",
        "which L4T this is cannot be told",
        "no power rail can be read",
        "tegrastats is not here",
    ),
    "with a GeForce card": (),
    "too old": (),
    "WSL2 without": (),
    "without a card": (),
}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin")
    for name in ("CUDACXX", "CMAKE_ARGS"):
        monkeypatch.delenv(name, raising=False)


def report_of(folder: Path, files: Files) -> Report:
    for path in write_tree(folder, files).glob("usr/**/bin/*"):
        path.chmod(0o755)
    return examine(folder)


def state_of(report: Report, runtime: str) -> tuple[str, str]:
    return next((one.reason, one.mend) for one in report.runtimes if one.name == f"{runtime}+llamacpp")


@pytest.mark.parametrize("title", TREES)
def test_each_tree_has_its_runtimes_and_its_problems(tmp_path: Path, title: str) -> None:
    [name] = [name for name in USABLE if name in title]
    report = report_of(tmp_path, TREES[title])
    usable = {one.name.removesuffix("+llamacpp") for one in report.runtimes if one.usable}
    assert usable - {"torch"} == USABLE[name]
    assert len(report.problems) == len(PROBLEMS[name]), report.problems
    for problem, begin in zip(report.problems, PROBLEMS[name], strict=True):
        assert problem.startswith(begin)
    for state in report.runtimes:
        assert state.usable == (not state.reason)
        assert bool(state.mend) == (not state.usable), "what is not usable has a next step"
    assert not [text for text in report.problems if "\n" in text]


def test_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_a_gpu_that_is_not_shown_is_said_before_any_package(tmp_path: Path) -> None:
    reason, mend = state_of(report_of(tmp_path, device_trees.CONTAINER), "tensorrt")
    assert reason.startswith("a Jetson whose GPU is not shown")
    assert mend.startswith("docker run --runtime nvidia ")


def test_a_jetson_without_cuda_gets_its_own_packages(tmp_path: Path) -> None:
    without = {name: text for name, text in device_trees.ORIN_NANO_6_2.items() if "cuda-12.6" not in name}
    reason, mend = state_of(report_of(tmp_path, without), "tensorrt")
    assert reason == "no CUDA runtime (libcudart.so of 12 or 13) is here"
    assert mend == "sudo apt-get install -y cuda-cudart-12-6"


def test_the_drivers_library_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    without = {name: text for name, text in device_trees.ORIN_NANO_6_2.items() if "libcuda." not in name}
    reason, mend = state_of(report_of(tmp_path, without), "tensorrt")
    assert "libcuda.so.1" in reason
    assert mend.startswith("sudo apt-get install -y nvidia-l4t-cuda; in a container")


@pytest.mark.parametrize(
    ("driver", "usable"), [("525.60.12", False), ("525.60.13", True), ("580.65.06", True)]
)
def test_a_driver_may_be_too_old_for_one_cuda_and_do_for_another(
    tmp_path: Path, driver: str, usable: bool
) -> None:
    """Oldest drivers: the release notes of CUDA 12 and 13."""
    files = device_trees.DESKTOP | device_trees.toolkit("12.8.93", target="x86_64-linux")
    files["proc/driver/nvidia/version"] = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Mon\n"
    report = report_of(tmp_path, files)
    assert (state_of(report, "tensorrt-rtx")[0] == "") == usable
    refused = [text for text in report.problems if "is too old for CUDA 13" in text]
    assert bool(refused) == (driver != "580.65.06")
    assert any(text.startswith("2 CUDA runtimes") for text in report.problems)


def test_memory_is_judged_by_what_the_bundle_needs(tmp_path: Path) -> None:
    """The shipped bundle needs little: the 256 MiB that a large engine fails with are enough."""
    write_tree(tmp_path, device_trees.FRESH)
    command = [sys.executable, "-m", "tinyllava_edge", "doctor", "--root", str(tmp_path), "--json"]
    told = {}
    for options in ((), ("--bundle", "nano")):
        result = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=False, env=os.environ
        )
        assert result.returncode == 1, result.stderr
        told[options] = [text[:8] for text in json.loads(result.stdout)["problems"]]
    assert "CmaTotal" in told[()]
    assert "CmaTotal" not in told["--bundle", "nano"]


def test_a_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert_one_line("doctor", "--root", tmp_path / "absent", named=("absent",))
