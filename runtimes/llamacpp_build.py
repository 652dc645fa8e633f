"""Whether llama.cpp was built for this processor.

llama-cpp-python is compiled where it is installed, by default for the processor at hand, and pip keeps the
wheel: with a cache or an image that machines share, another machine takes it, and dies of an illegal
instruction in the middle of an answer. `python -m tinyllava_edge.runtimes.llamacpp_build` tells, with exit
code 2 and one line where the build does not suit.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Collection
from functools import cache

from tinyllava_edge.device import read_cpu

MEND = "pip cache remove llama_cpp_python; pip install --force-reinstall --no-deps llama-cpp-python"
# As llama_print_system_info() spells them -> as /proc/cpuinfo does.
INSTRUCTIONS = {
    "AVX": "avx",
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "BMI2": "bmi2",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512_vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "FP16_VA": "asimdhp",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
}
_ASK = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
_TIMEOUT = 60  # seconds


def build_fault(features: Collection[str]) -> str:
    """Why the installed llama.cpp cannot run on a processor, or nothing.

    Args:
        features: what the processor has, as in `read_cpu().features`; if empty, nothing is found missing.

    The library is asked in a process of its own: it may die of the very instruction that is looked for.
    """
    answer, status = _system_info()
    if status == -signal.SIGILL:
        return "llama.cpp was built for another processor: it dies of an illegal instruction"
    missing = sorted(name for name in _built_for(answer) if name not in features)
    if missing and features:
        return f"llama.cpp was built for {', '.join(missing)}, which this processor does not have"
    return ""


@cache
def _system_info() -> tuple[str, int]:
    """What the library says of itself, and the exit status of the process that asked."""
    command = [sys.executable, "-c", _ASK]
    result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    return result.stdout, result.returncode


def _built_for(system_info: str) -> set[str]:
    """Instructions in "CPU : SSE3 = 1 | AVX = 1 | ...", as /proc/cpuinfo spells them."""
    compiled = {name for name, value in re.findall(r"(\w+) = (\d+)", system_info) if value != "0"}
    return {INSTRUCTIONS[name] for name in compiled & INSTRUCTIONS.keys()}


if __name__ == "__main__":
    if fault := build_fault(read_cpu().features):
        sys.stderr.write(f"{fault}. To build it here: {MEND}\n")
        sys.exit(2)
