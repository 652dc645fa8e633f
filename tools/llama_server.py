"""llama.cpp's own server, built for this machine from the source of llama-cpp-python: `make peers`.

    python -m tools.llama_server .peers/llama-server llama-cpp-python==0.3.36

The directory is a virtual environment with cmake and ninja; the program is put into it as `llama-server`.
"""

import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Annotated

import typer

import tools
from tinyllava_edge.device import read_machine
from tinyllava_edge.errors import BackendError
from tinyllava_edge.install import LEFT_OUT

PROGRAM = "llama-server"
_BUILT = ("-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_TOOLS=OFF")
# As `llamacpp_backends.py`: the product of q8_0 with AMX dies of an illegal instruction.
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def cmake_flags(architecture: str) -> list[str]:
    """What the server is configured with: this very processor, no page of its own, nothing else built."""
    flags = [flag.replace("OFF", "ON") if flag in _BUILT else flag for flag in LEFT_OUT]
    flags += ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=ON"]
    flags.append("-DLLAMA_USE_PREBUILT_UI=OFF")  # it would be fetched from a hub
    if architecture.lower() in ("x86_64", "amd64"):
        flags += [f"-DCMAKE_C_FLAGS={_NO_AMX}", f"-DCMAKE_CXX_FLAGS={_NO_AMX}"]
    return flags


def build(home: Path, requirement: str) -> None:
    """Fetch the source, and build.

    Raises:
        BackendError: a step failed; its words are above.
    """
    python, cmake, ninja = (home / "bin" / name for name in ("python", "cmake", "ninja"))
    source, built = home / "source", home / "build"
    shutil.rmtree(source, ignore_errors=True)  # of another version
    name = requirement.partition("==")[0]
    _run(python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, "-d", source, requirement)
    (archive,) = source.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(source, filter="data")
    (root,) = source.glob("llama_cpp_python-*/vendor/llama.cpp")
    flags = [f"-DCMAKE_MAKE_PROGRAM={ninja.absolute()}", *cmake_flags(read_machine().cpu.architecture)]
    _run(cmake, "-S", root, "-B", built, "-G", "Ninja", *flags)
    _run(cmake, "--build", built, "--target", PROGRAM)
    (home / PROGRAM).unlink(missing_ok=True)
    (home / PROGRAM).symlink_to(Path("build", "bin", PROGRAM))


def _run(*command: object) -> None:
    words = [str(word) for word in command]
    if code := subprocess.run(words, check=False).returncode:
        raise BackendError(f"{' '.join(words[:3])}... ended with code {code}; its words are above.")


def main(
    home: Annotated[Path, typer.Argument(help="Virtual environment with cmake and ninja.")],
    requirement: Annotated[str, typer.Argument(help="Of llama-cpp-python.")],
) -> None:
    """Build llama.cpp's own server for this machine."""
    build(home, requirement)


if __name__ == "__main__":
    tools.run(main)
