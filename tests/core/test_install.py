"""The line that installs llama.cpp, on trees of files as boards and machines have them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.core.test_device import write_tree
from tinyllava_edge import install
from tinyllava_edge.install import LEFT_OUT, llamacpp_line

MEMINFO = "MemTotal: 7800000 kB\nMemAvailable: {} kB\n"
ORIN_NANO = {
    "dev/nvhost-gpu": "",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "proc/meminfo": MEMINFO.format(6_500_000),  # three compilers of 2 GiB fit
    "usr/bin/c++": "",
}
THOR = ORIN_NANO | {
    "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
    "etc/nv_tegra_release": "# R38 (release), REVISION: 2.1, GCID: 42061081, BOARD: generic, EABI: aarch64\n",
}
INSTALLED = {
    "opt/tinyllava/lib/python3.10/site-packages/llama_cpp_python-0.3.36.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.3.36\n"
    )
}
CARD = {"dev/nvidiactl": "", "proc/meminfo": MEMINFO.format(6_500_000), "usr/bin/c++": ""}


def toolkit(release: str, place: str = "") -> dict[str, str]:
    folder = place or f"usr/local/cuda-{release}"
    headers = ("cuda_runtime.h", "cublas_v2.h")
    return {f"{folder}/bin/nvcc": "", **{f"{folder}/include/{name}": "" for name in headers}}


@pytest.fixture(autouse=True)
def _six_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin")
    for name in ("CUDACXX", "CMAKE_ARGS"):
        monkeypatch.delenv(name, raising=False)


def line(tmp_path: Path, files: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The line on a tree, as a shell reads it: its variables and its words; its programs can be executed."""
    for path in (write_tree(tmp_path, files) / "usr").rglob("*"):
        path.chmod(0o755)
    words = shlex.split(llamacpp_line(tmp_path))
    settings = dict(
        word.split("=", 1) for word in words if word.split("=")[0].isupper() or "CMAKE_" in word[:6]
    )
    return settings, [word for word in words if word.split("=")[0] not in settings]


@pytest.mark.parametrize(
    ("board", "release", "architecture"), [(ORIN_NANO, "12.6", "87"), (THOR, "13.0", "110")]
)
def test_a_board_gets_a_cuda_build_for_its_chip_in_as_many_jobs_as_fit(
    tmp_path: Path, board: dict[str, str], release: str, architecture: str
) -> None:
    settings, words = line(tmp_path, board | toolkit(release) | INSTALLED)
    assert settings["CUDACXX"] == f"/usr/local/cuda-{release}/bin/nvcc"
    assert settings["CMAKE_BUILD_PARALLEL_LEVEL"] == "3"
    flags = settings["CMAKE_ARGS"].split()
    assert {"-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}", "-DGGML_CUDA_NO_VMM=ON"} <= {
        *flags
    }
    assert {*LEFT_OUT} <= {*flags}
    assert words[-5:-1] == ["install", "--no-cache-dir", "--force-reinstall", "--no-deps"]


@pytest.mark.parametrize(
    ("board", "packages"),
    [
        (ORIN_NANO, "cuda-nvcc-12-6 cuda-cudart-dev-12-6 libcublas-dev-12-6"),
        (THOR, "cuda-nvcc-13-0 cuda-cudart-dev-13-0 libcublas-dev-13-0"),
        (ORIN_NANO | {"usr/local/cuda-12.6/bin/nvcc": ""}, "cuda-cudart-dev-12-6 libcublas-dev-12-6"),
        (CARD, "nvidia-cuda-toolkit"),
        ({"proc/meminfo": ""}, "g++"),
    ],
)
def test_packages_that_the_build_lacks_are_installed_first(
    tmp_path: Path, board: dict[str, str], packages: str
) -> None:
    _, words = line(tmp_path, {name: text for name, text in board.items() if packages != "g++"})
    assert words[words.index("install") : words.index("&&")] == ["install", "-y", *packages.split()]


def test_a_machine_without_a_gpu_gets_a_cpu_build_though_nvcc_is_there(tmp_path: Path) -> None:
    settings, words = line(
        tmp_path, {"usr/bin/c++": "", "proc/meminfo": MEMINFO.format(2_500_000), **toolkit("13.0")}
    )
    assert "CUDACXX" not in settings
    assert "CUDA" not in settings["CMAKE_ARGS"]
    assert settings["CMAKE_BUILD_PARALLEL_LEVEL"] == "2"
    assert "&&" not in words


def test_a_build_for_x86_64_is_for_every_kind_of_its_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = {"usr/bin/c++": "", "proc/meminfo": MEMINFO.format(2_500_000), "proc/cpuinfo": "flags : avx2\n"}
    arm = cpu | {"proc/cpuinfo": "CPU implementer : 0x41\n"}
    variants = "-DGGML_CPU_ALL_VARIANTS=ON"
    flags = line(tmp_path / "cpu", cpu)[0]["CMAKE_ARGS"].split()
    assert {
        variants,
        "-DGGML_BACKEND_DL=ON",
        "-DGGML_NATIVE=OFF",
        "-DCMAKE_INSTALL_BINDIR=llama_cpp/lib",
    } <= {*flags}
    assert "GGML" not in line(tmp_path / "arm", arm)[0]["CMAKE_ARGS"]  # for the board that compiles
    with_gpu = line(tmp_path / "gpu", cpu | CARD | toolkit("13.0"))[0]["CMAKE_ARGS"]
    assert "-DGGML_NATIVE=OFF" in with_gpu
    assert "BACKEND_DL" not in with_gpu
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=ON")
    flags = line(tmp_path / "own", cpu)[0]["CMAKE_ARGS"].split()
    assert variants not in flags
    assert flags[-2:] == ["-DGGML_NATIVE=OFF", "-DGGML_NATIVE=ON"]  # CMake takes the last


def test_make_builds_for_every_processor_only_when_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a cold build of it was timed as a whole."""
    asked: list[str] = []

    def pip(command: list[str], *, env: dict[str, str], check: bool) -> Any:
        asked.append(env["CMAKE_ARGS"])
        return SimpleNamespace(returncode=0)

    toolkit = install.Toolkit()
    machine: Any = SimpleNamespace(
        cpu=SimpleNamespace(architecture="x86_64", usable_cores=2), system="Linux 6", memory=None, jetson=None
    )
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(install, "find_toolkit", lambda: toolkit)
    monkeypatch.setattr(install, "read_machine", lambda: machine)
    monkeypatch.setattr("subprocess.run", pip)
    assert [install._main(words) for words in ([], ["--every-processor"])] == [0, 0]
    assert ["ALL_VARIANTS" in flags for flags in asked] == [False, True]


def test_a_compiler_that_knows_no_new_instructions_builds_for_avx2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old-c++"
    old.write_text("#!/bin/sh\ncase $* in *amx*) exit 1;; esac\n")
    old.chmod(0o755)
    monkeypatch.setenv("CXX", str(old))
    toolkit = install.cpu_toolkit()
    assert not toolkit.knows_all_variants
    machine: Any = SimpleNamespace(
        cpu=SimpleNamespace(architecture="x86_64", usable_cores=2), system="Linux 6", memory=None, jetson=None
    )
    assert "BACKEND_DL" not in install.build_variables(toolkit, machine)["CMAKE_ARGS"]


def test_a_card_is_asked_what_it_is_and_the_newest_toolkit_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin/nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '8.9\\n7.5\\n8.9\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    ask = install._nvidia_smi
    monkeypatch.setattr(install, "_nvidia_smi", lambda _, *options: ask(Path("/"), *options))
    settings, _ = line(tmp_path / "root", CARD | toolkit("12.9") | toolkit("12.10"))
    assert settings["CUDACXX"] == "/usr/local/cuda-12.10/bin/nvcc"
    assert "-DCMAKE_CUDA_ARCHITECTURES=75;89" in settings["CMAKE_ARGS"].split()
    monkeypatch.setenv("CUDACXX", "/usr/local/cuda-12.9/bin/nvcc")
    assert line(tmp_path / "root", {})[0]["CUDACXX"] == "/usr/local/cuda-12.9/bin/nvcc"


def test_a_first_installation_brings_what_llama_cpp_depends_on(tmp_path: Path) -> None:
    _, words = line(tmp_path, CARD | {"dev/nvidiactl": ""})
    assert "--no-deps" not in words
    assert "--no-cache-dir" in words


def test_who_builds_may_add_flags_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=ON")
    settings, _ = line(tmp_path, {"usr/bin/c++": ""})
    assert settings["CMAKE_ARGS"].split()[-1] == "-DGGML_NATIVE=ON"  # CMake takes the last


def test_it_needs_nothing_but_python() -> None:
    """The Makefile runs it before anything is installed."""
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        "import sys; sys.path.insert(0, sys.argv[1]); import runpy; ",
    ]
    command[-1] += (
        "sys.argv[1:] = ['--left-out']; runpy.run_module('tinyllava_edge.install', run_name='__main__')"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([*command, root], capture_output=True, text=True, check=False)
    assert result.stdout.split() == [*LEFT_OUT], result.stderr


def test_what_the_makefile_installs_is_the_version_that_the_lines_name() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert f"\nLLAMA_CPP ?= {install.LLAMA_CPP}\n" in makefile
    assert "-DLLAMA_" not in makefile
    assert "-DGGML_CUDA" not in makefile


def test_where_only_the_gpus_compiler_is_missing_a_cpu_build_is_made_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make demo` goes on where nothing but a C++ compiler and cmake was asked for."""
    built: list[dict[str, str]] = []
    really = subprocess.run

    def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        if "some-llama==1" not in command:
            return really(command, **options)
        built.append(options["env"])
        return subprocess.CompletedProcess(command, 0)

    lacking = install.Toolkit(nvcc="/usr/bin/nvcc", architecture="87", missing=("cuda-nvcc-12-6",))
    monkeypatch.setattr(install, "find_toolkit", lambda root=None: lacking)
    monkeypatch.setattr("subprocess.run", run)
    assert install._main(["some-llama==1"]) == 0
    said = capsys.readouterr().err
    assert "a CPU build, which leaves the GPU here out" in said
    assert "install -y cuda-nvcc-12-6 && " in said
    assert "GGML_CUDA" not in built[0]["CMAKE_ARGS"]
    monkeypatch.setattr(install, "find_toolkit", lambda root=None: install.Toolkit(missing=("g++",)))
    assert install._main(["some-llama==1"]) == 2
    assert "a compiler is missing" in capsys.readouterr().err


def test_on_windows_the_compiler_is_cmakes_to_find_and_cuda_is_named_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    windows = SimpleNamespace(name="nt", environ={}, pathsep=";")
    monkeypatch.setattr(install, "os", windows)
    monkeypatch.setattr(install, "has_nvidia_gpu", lambda _: False)
    line = f"{shlex.quote(sys.executable)} -m tinyllava_edge.install --fresh"
    assert llamacpp_line() == line
    monkeypatch.setattr(install, "has_nvidia_gpu", lambda _: True)
    monkeypatch.setattr(install, "find_nvcc", lambda _: None)
    assert llamacpp_line() == f"install NVIDIA's CUDA Toolkit, then {line}"
    monkeypatch.setattr(install, "find_nvcc", lambda _: "C:/CUDA/bin/nvcc.exe")
    assert install.find_toolkit().nvcc == "C:/CUDA/bin/nvcc.exe"
    assert llamacpp_line() == line
