"""The line that installs llama.cpp for this machine; `python -m tinyllava_edge.install` runs it.

llama-cpp-python comes as source, and what it becomes is settled where it is compiled: without nvcc and an
architecture it is a CPU build, on a GPU board too, and nothing says so
(docs/sources/tensorrt.md#llamacpp-on-a-jetson). A wheel that pip kept is for whatever asked for it first.
Needs nothing but Python: the Makefile runs it before anything is installed.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tinyllava_edge.device import Machine, ask_nvidia_smi, has_nvidia_gpu, read_machine
from tinyllava_edge.installed import is_distribution
from tinyllava_edge.jetson import TEGRAS, read_jetson
from tinyllava_edge.machine_files import HERE, shown

LLAMA_CPP = "llama-cpp-python==0.3.36"  # the version tested
# We use the library and mtmd; the rest takes minutes.
LEFT_OUT = (
    *("-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_TOOLS=OFF"),
    *("-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_CURL=OFF"),
)
# A CPU backend for each kind of x86-64 processor, of which `llamacpp_backends.py` loads one; they go into the
# package, not into the environment's bin. docs/sources/llamacpp.md#variants-of-the-cpu-backend
ALL_VARIANTS = (
    *("-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"),
    "-DCMAKE_INSTALL_BINDIR=llama_cpp/lib",
)
_NEWEST = ("-mamx-int8", "-mavxvnni", "-mavx512bf16")  # of their compiler's flags: GCC 11, clang 12
# What a compiler process takes at its most.
_CUDA_JOB_BYTES, _CPU_JOB_BYTES = 2 << 30, 1 << 30


@dataclass(frozen=True, kw_only=True)
class Toolkit:
    """What compiles llama.cpp here.

    Attributes:
        nvcc: CUDA's compiler, or where it will be once `missing` is installed; None for a CPU build.
        architecture: of the GPU, as CMake has it ("87").
        missing: Debian packages that the build needs.
        knows_all_variants: whether the C++ compiler knows the newest instructions of x86-64.
    """

    nvcc: str | None = None
    architecture: str = ""
    missing: tuple[str, ...] = ()
    knows_all_variants: bool = True


def llamacpp_line(root: Path = HERE, requirement: str = LLAMA_CPP) -> str:
    """The shell's line that builds llama.cpp for this machine, and takes no wheel that was built before.

    Args:
        root: of the tree that shows what the machine is.
        requirement: of llama-cpp-python.
    """
    if os.name == "nt" and root == HERE:  # its shells set variables in other ways
        line, lacking = (
            f"{shlex.quote(sys.executable)} -m tinyllava_edge.install --fresh",
            find_toolkit().missing,
        )
        return f"{apt_install(lacking)}, then {line}" if lacking else line
    toolkit = find_toolkit(root)
    variables = build_variables(toolkit, read_machine(root))
    words = [*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), pip("install", root)]
    line = " ".join([*words, "--no-cache-dir", *_again(root), shlex.quote(requirement)])
    return f"{apt_install(toolkit.missing, root)} && {line}" if toolkit.missing else line


def find_toolkit(root: Path = HERE) -> Toolkit:
    """What there is to compile with; CUDA only where the kernel shows a GPU."""
    without_gpu = cpu_toolkit(root)
    if not has_nvidia_gpu(root):
        return without_gpu
    nvcc = find_nvcc(root)
    jetson = read_jetson(root)
    chip = jetson.chip if jetson else None
    architecture = TEGRAS.get(chip or "") or _compute_capabilities(root) or "native"
    if os.name == "nt" and root == HERE:
        missing = () if nvcc else ("NVIDIA's CUDA Toolkit",)
        return Toolkit(nvcc=nvcc or "nvcc", architecture=architecture, missing=missing)
    release = _cuda_release(root, nvcc)
    needed = ("cuda-nvcc", "cuda-cudart-dev", "libcublas-dev")
    there = (nvcc, _has_header(root, nvcc, "cuda_runtime.h"), _has_header(root, nvcc, "cublas_v2.h"))
    lacking = [name for name, found in zip(needed, there, strict=True) if not found]
    packages = (
        [f"{name}-{release}" for name in lacking] if release else ["nvidia-cuda-toolkit"][: len(lacking)]
    )
    return Toolkit(
        nvcc=nvcc
        or (f"/usr/local/cuda-{release.replace('-', '.')}/bin/nvcc" if release else "/usr/bin/nvcc"),
        architecture=architecture,
        missing=(*without_gpu.missing, *packages),
    )


def cpu_toolkit(root: Path = HERE) -> Toolkit:
    """What there is to compile a build for the CPU with."""
    is_windows = os.name == "nt" and root == HERE  # CMake finds Visual Studio's compiler itself
    compiler = (root == HERE and os.environ.get("CXX")) or _program(root, "c++") or _program(root, "g++")
    missing = () if is_windows or compiler else ("g++",)
    if root != HERE or not compiler:
        return Toolkit(missing=missing)
    command = [*shlex.split(compiler), *_NEWEST, "-E", "-x", "c++", os.devnull]
    asked = subprocess.run(command, capture_output=True, check=False) if shutil.which(command[0]) else None
    return Toolkit(missing=missing, knows_all_variants=asked is not None and asked.returncode == 0)


def find_nvcc(root: Path = HERE) -> str | None:
    """CUDA's compiler: where CUDACXX says, else in NVIDIA's places, else on the path; None if nowhere."""
    newest = sorted(root.glob("usr/local/cuda-*/bin/nvcc"), key=_release_of, reverse=True)
    named = [_below(root, os.environ["CUDACXX"])] if "CUDACXX" in os.environ else []
    for path in [*named, root / "usr/local/cuda/bin/nvcc", *newest]:
        if path.is_file():
            return shown(root, path)
    return _program(root, "nvcc")


def build_variables(toolkit: Toolkit, machine: Machine, *, every_processor: bool = True) -> dict[str, str]:
    """Environment variables of the build.

    On x86-64 it is not for the processor at hand, as pip's cache or an image may go to another machine: it is
    for AVX2, or for every kind. On ARM it is for the one at hand: the compilers of its boards know no SME.

    Args:
        toolkit: what there is to compile with.
        machine: what it is for.
        every_processor: whether to have a backend for each kind of x86-64, where that works: on Linux,
            without CUDA (whose library then says what it misses), with a compiler that knows them.
    """
    flags, own = [*LEFT_OUT], os.environ.get("CMAKE_ARGS", "").split()
    if machine.cpu.architecture.lower() in ("x86_64", "amd64"):
        suits = not toolkit.nvcc and machine.system.startswith("Linux") and toolkit.knows_all_variants
        is_plain = not any(flag.startswith("-DGGML_") for flag in own)
        flags += ALL_VARIANTS if every_processor and suits and is_plain else ["-DGGML_NATIVE=OFF"]
    if toolkit.nvcc:
        flags += ["-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={toolkit.architecture}"]
        if machine.jetson or toolkit.architecture in TEGRAS.values():
            flags.append("-DGGML_CUDA_NO_VMM=ON")
    flags += own
    job_bytes = _CUDA_JOB_BYTES if toolkit.nvcc else _CPU_JOB_BYTES
    fitting = machine.memory.available_bytes // job_bytes if machine.memory else 1
    jobs = max(1, min(machine.cpu.usable_cores, fitting))
    compiler = {"CUDACXX": toolkit.nvcc} if toolkit.nvcc else {}
    return {**compiler, "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs), "CMAKE_ARGS": " ".join(flags)}


def pip(command: str, root: Path = HERE) -> str:
    """`pip COMMAND` for this very Python: the path's may be another's, an environment may have none."""
    if root != HERE:
        return f"pip {command}"
    if find_spec("pip") is None and shutil.which("uv"):
        return f"uv pip {command} --python {shlex.quote(sys.executable)}"
    found = shutil.which("pip")
    if found and Path(found).parent == Path(sys.executable).parent:
        return f"pip {command}"
    return f"{shlex.quote(sys.executable)} -m pip {command}"


def apt_install(packages: tuple[str, ...], root: Path = HERE) -> str:
    """The line that installs Debian's or NVIDIA's packages; on Windows words, as there is none."""
    if os.name == "nt" and root == HERE:
        return f"install {', '.join(packages)}"
    is_root = root == HERE and hasattr(os, "geteuid") and os.geteuid() == 0
    return " ".join(["apt-get" if is_root else "sudo apt-get", "install -y", *packages])


def _again(root: Path = HERE) -> list[str]:
    """A first installation needs what llama-cpp-python depends on; a later one is to leave it as it is."""
    return ["--force-reinstall", "--no-deps"] if is_distribution("llama-cpp-python", root) else []


def _cuda_release(root: Path, nvcc: str | None) -> str | None:
    """Which CUDA the packages are to be of ("12-6"), as NVIDIA's package names have it."""
    if nvcc and (number := re.search(r"cuda-(\d+)\.(\d+)", str(_below(root, nvcc).resolve()))):
        return f"{number[1]}-{number[2]}"
    if jetson := read_jetson(root):
        return jetson.cuda
    driver = re.search(r"CUDA Version: (\d+)\.(\d+)", _nvidia_smi(root))
    return f"{driver[1]}-{driver[2]}" if driver else None


def _compute_capabilities(root: Path) -> str:
    """Of all GPUs here, as CMake has them: "86;89"; "" where the driver does not say."""
    said = _nvidia_smi(root, "--query-gpu=compute_cap", "--format=csv,noheader")
    found = re.findall(r"^(\d+)\.(\d)\s*$", said, re.MULTILINE)
    return ";".join(sorted({major + minor for major, minor in found}, key=int))


def _nvidia_smi(root: Path, *options: str) -> str:
    return ask_nvidia_smi(*options) if root == HERE else ""


def _has_header(root: Path, nvcc: str | None, name: str) -> bool:
    """Whether a header lies where this nvcc looks, or where Debian's own packages have it."""
    toolkit = _below(root, nvcc).resolve().parents[1] if nvcc else root / "usr"
    places = (toolkit / "include", *toolkit.glob("targets/*/include"), root / "usr/include")
    return any((place / name).is_file() for place in places)


def _release_of(nvcc: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", nvcc.parents[1].name)))


def _program(root: Path, name: str) -> str | None:
    """Where a program is on the path, below a root."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    found = shutil.which(name, path=os.pathsep.join(str(_below(root, folder)) for folder in folders))
    return shown(root, Path(found)) if found else None


def _below(root: Path, name: str) -> Path:
    return Path(name) if root == HERE else root / name.lstrip("/")


def _main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Install llama.cpp as this machine can use it.")
    parser.add_argument("requirement", nargs="?", default=LLAMA_CPP)
    parser.add_argument("--fresh", action="store_true", help="build it here, whatever pip has kept")
    parser.add_argument(
        "--cuda", metavar="ARCHITECTURE", help="for a GPU that is not shown here (in an image)"
    )
    parser.add_argument("--cpu", action="store_true", help="without the GPU that is here")
    parser.add_argument(
        "--every-processor",
        action="store_true",
        help="with a backend for each kind of x86-64; twice the time",
    )
    parser.add_argument("--left-out", action="store_true", help="only print what every build leaves out")
    options = parser.parse_args(arguments)
    if options.left_out:
        sys.stdout.write(" ".join(LEFT_OUT) + "\n")
        return 0
    toolkit = cpu_toolkit() if options.cpu else find_toolkit()
    if options.cuda:
        toolkit = Toolkit(nvcc=find_nvcc() or "nvcc", architecture=options.cuda)
    if "g++" in toolkit.missing:
        sys.stderr.write(f"to build llama.cpp, a compiler is missing: {apt_install(toolkit.missing)}\n")
        return 2
    if toolkit.missing:
        sys.stderr.write(
            "llama.cpp: a CPU build, which leaves the GPU here out: packages are missing for that. With it: "
            f"{llamacpp_line(requirement=options.requirement)}\n"
        )
        toolkit = cpu_toolkit()
    variables = build_variables(toolkit, read_machine(), every_processor=options.every_processor)
    fresh = ["--no-cache-dir", *_again()] if options.fresh or toolkit.nvcc else []
    command = [*shlex.split(pip("install")), *fresh, options.requirement]
    sys.stderr.write(f"{shlex.join([*(f'{k}={v}' for k, v in variables.items()), *command])}\n")
    return subprocess.run(command, env={**os.environ, **variables}, check=False).returncode


if __name__ == "__main__":
    sys.exit(_main())
