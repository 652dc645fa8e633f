"""Whether llama.cpp was built for this processor, and for all of it.

llama-cpp-python is compiled where it is installed, and pip keeps the wheel: with a cache or an image that
machines share, another machine takes it. Our own build for x86-64 has a backend for each kind of processor;
one that is for another kind dies of an illegal instruction in the middle of an answer, and one for an older
kind leaves a third of the time on the table. `python -m tinyllava_edge.runtimes.llamacpp_build` tells either
in one line, the first with exit code 2.
"""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection
from functools import cache

from tinyllava_edge.device import has_nvidia_gpu, read_cpu
from tinyllava_edge.install import llamacpp_line
from tinyllava_edge.module_process import module_command

# As llama_print_system_info() spells them -> as /proc/cpuinfo does.
_SAME = "AVX AVX2 FMA F16C BMI2 AVX_VNNI AVX512_VBMI AVX512_VNNI AVX512_BF16 AMX_INT8 SVE"
_ARM = {"NEON": "asimd", "FP16_VA": "asimdhp", "DOTPROD": "asimddp", "MATMUL_INT8": "i8mm"}
INSTRUCTIONS = {"AVX512": "avx512f", **_ARM, **{name: name.lower() for name in _SAME.split()}}
_VARIANT = re.compile(r"loaded CPU backend from \S*ggml-cpu-([\w.]+?)\.(?:so|dll|dylib)")
# What makes products faster on this architecture -> what another instruction does as well.
_FASTER = {
    "avx512f": "", "avx512_vnni": "", "avx512_bf16": "", "avx_vnni": "avx512_vnni",
    "asimddp": "", "asimdhp": "", "i8mm": "",
}  # fmt: skip
CPU_BUILD = "llama.cpp: CPU build, a GPU is there"
_CUDA_LIBRARY = re.compile(r"lib(cuda|cudart|cublas|cublasLt)\.so[.\d]*")
_TIMEOUT = 60  # seconds


def build_fault(features: Collection[str]) -> str:
    """Why the installed llama.cpp cannot run on a processor, or nothing.

    Args:
        features: what the processor has, as in `read_cpu().features`; if empty, nothing is found missing.

    The library is asked in a process of its own: it may die of the very instruction that is looked for.
    """
    _, status = system_info()
    if status == -signal.SIGILL:
        return "llama.cpp was built for another processor: it dies of an illegal instruction"
    missing = sorted(_compiled() - set(features))
    if missing and features:
        return f"llama.cpp was built for {', '.join(missing)}, which this processor does not have"
    return ""


def unused_instructions(features: Collection[str]) -> tuple[str, ...]:
    """What of a processor makes llama.cpp faster, and is not in the build; () where a GPU is there."""
    answer, status = system_info()
    if status != 0 or "CUDA : " in answer or cpu_variant() or has_nvidia_gpu():
        return ()
    compiled = _compiled()
    return tuple(
        name
        for name, same in _FASTER.items()
        if name in features and name not in compiled and same not in compiled | {*features}
    )


def cpu_variant() -> str:
    """Which of its backends for the CPU llama.cpp takes here ("zen4"), "" where it has but one."""
    found = _VARIANT.search(_ask_library().stderr)
    return found[1] if found else ""


def unused_line(features: Collection[str]) -> str:
    """What `unused_instructions` finds, with what mends it; "" where that is nothing, or nothing mends it."""
    unused, line = ", ".join(unused_instructions(features)), llamacpp_line()
    is_again_old = (
        "-DGGML_NATIVE=OFF" in line and "-DGGML_CPU_ALL_VARIANTS=ON" not in line
    )  # compiler or system
    if not unused or is_again_old:
        return ""
    return f"llama.cpp is built without {unused}, which this processor has: {line}"


def lacks_cuda() -> bool:
    """Whether the installed llama.cpp is a build for the CPU, and the kernel shows a GPU."""
    if not has_nvidia_gpu():
        return False
    answer, status = system_info()
    return status == 0 and "CUDA : " not in answer


def load_mend(message: str) -> str:
    """What to do where the library does not load, by what the loader said."""
    missing = _CUDA_LIBRARY.search(message)
    if missing is None:
        return f"Install it again: {llamacpp_line()}"
    name = missing[0]
    place = "NVIDIA's driver brings it: install that"
    if not name.startswith("libcuda."):
        place = "put its folder (/usr/local/cuda-*/lib64) on LD_LIBRARY_PATH, or install that library of CUDA"
    cpu = f"{shlex.quote(sys.executable)} -m tinyllava_edge.install --cpu --fresh"
    return f"It is a CUDA build, and {name} is not found: {place}. A build without the GPU: {cpu}"


def system_info() -> tuple[str, int]:
    """What the library says of itself ("CPU : AVX = 1 | ..."), and the exit status of who asked it."""
    result = _ask_library()
    return result.stdout, result.returncode


def _compiled() -> set[str]:
    """The instructions of the build, as /proc/cpuinfo spells them."""
    named = {name for name, value in re.findall(r"(\w+) = (\d+)", system_info()[0]) if value != "0"}
    return {INSTRUCTIONS[name] for name in named & INSTRUCTIONS.keys()}


@cache
def _ask_library() -> "subprocess.CompletedProcess[str]":
    command = module_command("tinyllava_edge.llamacpp_backends")
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)


if __name__ == "__main__":
    if fault := build_fault(read_cpu().features):
        sys.stderr.write(f"{fault}. To build it here: {llamacpp_line()}\n")
        sys.exit(2)
    if unused := unused_line(read_cpu().features):
        sys.stderr.write(f"{unused}\n")
