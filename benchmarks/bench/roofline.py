"""What this machine can do at most: products of matrices by type, and reading memory. Nothing of a model.

Measured in a process of its own, whose libraries get the bench's number of threads before they are loaded:
`python -m tinyllava_edge.benchmarks.bench.roofline THREADS` prints a line of JSON. Each rate is the best of
all libraries that are here: a floor is what nobody was seen below.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import numpy as np

from tinyllava_edge.errors import BackendError
from tinyllava_edge.machine_files import HERE, read_meminfo
from tinyllava_edge.module_process import module_command

from .onnx_product import matmul_graph

Record = dict[str, Any]
_SIZES, _SMALL_SIZE = (512, 1024), 256  # enough for full speed, and short enough to fit between others' work
_SECONDS = 0.4  # for each kind and size, behind a first run
_SLOW_S = 0.02  # of the small product: then the large one would take seconds
_READ_BYTES = 1 << 30  # far more than any cache holds, read in turns of so much
_TURN_BYTES = 64 << 20
_MOST_OF_MEMORY = 8  # one part of what is available
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def measure_roof(threads: int) -> Record:
    """Rates of this machine with so many threads, in a new process.

    Returns:
        `threads`; `gflops` by type ("fp32", "bf16", "int8"; a multiply-add is 2 operations), each with its
        library in `by`; `read_gb_per_s`.

    Raises:
        BackendError: the process failed; what it said is on standard error.
    """
    variables = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    command = module_command(__name__, str(threads))
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **variables}
    )
    if result.returncode:
        raise BackendError(f"measuring the machine's roof ended with code {result.returncode}.")
    found: Record = json.loads(result.stdout.splitlines()[-1])
    return found


def measure_here(threads: int) -> Record:
    """The same in this process."""
    rates: dict[str, tuple[float, str]] = {}
    for kind, library, run in _products(threads):
        rate = _gflops(run)
        if rate > rates.get(kind, (0.0, ""))[0]:
            rates[kind] = (rate, library)
    return {
        "threads": threads,
        "gflops": {kind: round(rate, 2) for kind, (rate, _) in rates.items()},
        "by": {kind: library for kind, (_, library) in rates.items()},
        "read_gb_per_s": round(_read_rate(threads) / 1e9, 3),
    }


def _products(threads: int) -> Iterator[tuple[str, str, Callable[[int], Callable[[], Any]]]]:
    """Type, library, and what gives a product of two square matrices of a size."""
    yield "fp32", "numpy", _numpy_product
    if find_spec("onnxruntime"):
        for kind in ("fp32", "int8"):
            yield kind, "onnxruntime", partial(_onnxruntime_product, kind, threads)
    if find_spec("torch"):
        for kind in ("fp32", "bf16"):
            yield kind, "torch", partial(_torch_product, kind, threads)


def _numpy_product(size: int) -> Callable[[], Any]:
    left, right, out = (np.ones((size, size), np.float32) for _ in range(3))
    return lambda: np.matmul(left, right, out=out)


def _onnxruntime_product(kind: str, threads: int, size: int) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(matmul_graph(kind, size), options, ["CPUExecutionProvider"])
    left = np.ones((size, size), np.float32 if kind == "fp32" else np.uint8)
    return lambda: session.run(None, {"left": left})


def _torch_product(kind: str, threads: int, size: int) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(threads)
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    left, right = (torch.ones(size, size, dtype=dtype) for _ in range(2))
    return partial(torch.mm, left, right, out=torch.empty(size, size, dtype=dtype))


def _gflops(prepared: Callable[[int], Callable[[], Any]]) -> float:
    """Best of some runs and sizes; of a small product alone where that is slow already."""
    slow = _best_s(prepared(_SMALL_SIZE), 0.0) > _SLOW_S
    sizes = (_SMALL_SIZE,) if slow else _SIZES
    return max(2 * size**3 / _best_s(prepared(size), _SECONDS) / 1e9 for size in sizes)


def _best_s(run: Callable[[], Any], seconds: float) -> float:
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _read_rate(threads: int) -> float:
    """Bytes a second that all threads read together, turn by turn through a block that no cache holds."""
    available = read_meminfo(HERE, "MemAvailable") or 8 * _READ_BYTES
    size = min(_READ_BYTES, available // _MOST_OF_MEMORY) // threads
    turn = min(size, _TURN_BYTES // threads)
    blocks = [np.ones(size, np.uint8) for _ in range(threads)]
    turns = cycle(range(0, size - turn + 1, turn))

    def read_one() -> None:
        start = next(turns)
        list(pool.map(np.max, [block[start : start + turn] for block in blocks]))

    with ThreadPoolExecutor(threads) as pool:  # numpy gives the interpreter's lock away meanwhile
        return turn * threads / _best_s(read_one, 2 * _SECONDS)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure_here(int(sys.argv[1]))))
