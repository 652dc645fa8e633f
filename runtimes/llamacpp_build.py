"""Whether llama.cpp was built for this processor.

llama-cpp-python is compiled where it is installed, by default for the processor at hand, and pip keeps the
wheel: with a cache or an image that machines share, another machine takes it, and dies of an illegal
instruction in the middle of an answer. `python -m tinyllava_edge.runtimes.llamacpp_build` tells, with exit
code 2 and one line where the build does not suit.
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

# As llama_print_system_info() spells them -> as /proc/cpuinfo does.
_SAME = "AVX AVX2 FMA F16C BMI2 AVX_VNNI AVX512_VBMI AVX512_VNNI AVX512_BF16 AMX_INT8 SVE"
_ARM = {"NEON": "asimd", "FP16_VA": "asimdhp", "DOTPROD": "asimddp", "MATMUL_INT8": "i8mm"}
INSTRUCTIONS = {"AVX512": "avx512f", **_ARM, **{name: name.lower() for name in _SAME.split()}}
_ASK = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
CPU_BUILD = "llama.cpp: CPU build, a GPU is there"
_CUDA_LIBRARY = re.compile(r"lib(cuda|cudart|cublas|cublasLt)\.so[.\d]*")
_TIMEOUT = 60  # seconds


def build_fault(features: Collection[str]) -> str:
    """Why the installed llama.cpp cannot run on a processor, or nothing.

    Args:
        features: what the processor has, as in `read_cpu().features`; if empty, nothing is found missing.

    The library is asked in a process of its own: it may die of the very instruction that is looked for.
    """
    answer, status = system_info()
    if status == -signal.SIGILL:
        return "llama.cpp was built for another processor: it dies of an illegal instruction"
    compiled = {name for name, value in re.findall(r"(\w+) = (\d+)", answer) if value != "0"}
    missing = sorted({INSTRUCTIONS[name] for name in compiled & INSTRUCTIONS.keys()} - set(features))
    if missing and features:
        return f"llama.cpp was built for {', '.join(missing)}, which this processor does not have"
    return ""


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


@cache
def system_info() -> tuple[str, int]:
    """What the library says of itself ("CPU : AVX = 1 | ..."), and the exit status of who asked it."""
    command = [sys.executable, "-c", _ASK]
    result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    return result.stdout, result.returncode


if __name__ == "__main__":
    if fault := build_fault(read_cpu().features):
        sys.stderr.write(f"{fault}. To build it here: {llamacpp_line()}\n")
        sys.exit(2)
