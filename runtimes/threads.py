"""One thread budget for all engines of a process, and no idle engine that spins.

The engines of a model work in turns, so each may use the whole budget. A pool that waits by spinning takes
the cores away from the one that has work, and two spinning threads on one core wait for each other's slices.

Measured on 2 cores of an EPYC (Zen 4), ms, median of 3 runs alone, of 2 to 5 among others (load average 6):

                                                   alone           among other processes
    one token, 2 threads               135 M q8_0   6 M q8_0       135 M q8_0   6 M q8_0
      OpenMP as it comes (300000)            11.0       0.65               62         14
      GOMP_SPINCOUNT=10000                   10.0       0.61              147         28
      GOMP_SPINCOUNT=1000                    10.6       0.58               42         11
      GOMP_SPINCOUNT=0                       27.7       4.11               38        2.5
    one token, 1 thread                      13.6       0.69               15        0.8
    prefill of 100 right after vision, 2 threads
      ONNX Runtime as it comes              256        30.5              1100        130
      ONNX Runtime without spinning         203        15.9               640         53

So llama.cpp's OpenMP spins for some 20 us at a barrier (a token has hundreds), ONNX Runtime not at all (its
own time was the same, 54 ms), and a model whose token is less than a millisecond's work decodes on one
thread (`llamacpp.py`).
"""

import os
import platform

from tinyllava_edge.device import read_cpu

# Rounds of libgomp's waiting loop in about 20 us: on x86 a round has a `pause`, elsewhere it has not (the
# second number is from that, and was not measured).
_X86_SPINS, _OTHER_SPINS = 1_000, 10_000
_USER_POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def thread_budget(threads: int | None) -> int:
    """Threads for an engine: as asked for, or the cores this process may use."""
    return read_cpu().usable_cores if threads is None else threads


def limit_openmp_spin() -> None:
    """Shorten the spinning of OpenMP threads at barriers, unless the user has set a policy.

    OpenMP reads this when it is loaded, so call it before. In a process that has loaded the same OpenMP
    library already (PyTorch may) it has no effect.
    """
    if not any(name in os.environ for name in _USER_POLICIES):
        is_x86 = platform.machine() in ("x86_64", "AMD64", "i686")
        os.environ["GOMP_SPINCOUNT"] = str(_X86_SPINS if is_x86 else _OTHER_SPINS)
