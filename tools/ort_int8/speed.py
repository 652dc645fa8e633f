"""How long a layer's products take at prefill: ONNX Runtime's kinds beside OpenVINO's.

`python -m tools.ort_int8.speed SHAPE BLOCKS` is one session, a process of its own: a line of JSON, for each
way to compute two times in ms for each block. They take turns, A B C C B A, in an order drawn for each block.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tinyllava_edge.errors import BackendError
from tinyllava_edge.runtimes.threads import limit_openmp_spin, thread_budget

from .graphs import KINDS, Floats, Products, open_products

ROWS = 768  # of a prompt with a picture of 728 tokens
# Hidden size, inner size, columns of queries, and of keys or values; layers.
SHAPES = {"SmolLM2-135M": (576, 1536, 576, 192, 30), "Qwen2-0.5B": (896, 4864, 896, 128, 24)}
Times = dict[str, list[list[float]]]


def layer_of(shape: str) -> Products:
    """Random weights of one layer: what its products read -> what they write -> weight."""
    hidden, inner, queries, keys, _ = SHAPES[shape]
    rng = np.random.default_rng(0)

    def weight(outputs: int, columns: int) -> Floats:
        return rng.normal(0, columns**-0.5, (outputs, columns)).astype(np.float32)

    return {
        "normed": {"q": weight(queries, hidden), "k": weight(keys, hidden), "v": weight(keys, hidden)},
        "heads": {"o": weight(hidden, queries)},
        "normed_again": {"gate": weight(inner, hidden), "up": weight(inner, hidden)},
        "gated": {"down": weight(hidden, inner)},
    }


def measure_speed(shape: str, sessions: int, blocks: int) -> list[Times]:
    """Times of each session.

    Raises:
        BackendError: a session's process failed; what it said is on standard error.
    """
    limit_openmp_spin()
    found = []
    for _ in range(sessions):
        command = [sys.executable, "-m", __name__, shape, str(blocks)]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if result.returncode:
            raise BackendError(f"measuring {shape} ended with code {result.returncode}.")
        found.append(json.loads(result.stdout.splitlines()[-1]))
    return found


def _session(shape: str, blocks: int) -> Times:
    layer, threads = layer_of(shape), thread_budget(None)
    rng = np.random.default_rng(1)
    rows = {
        source: rng.normal(size=(ROWS, next(iter(found.values())).shape[1])).astype(np.float32)
        for source, found in layer.items()
    }
    cells = {kind: _onnxruntime(kind, layer, rows, threads) for kind in KINDS}
    cells |= _openvino(layer, rows, threads)
    for run in cells.values():
        run()
    times: Times = {name: [] for name in cells}
    for _ in range(blocks):
        order = random.sample([*cells], len(cells))
        once = [(name, _timed_ms(cells[name])) for name in (*order, *reversed(order))]
        for name in cells:
            times[name].append([ms for each, ms in once if each == name])
    return times


def _timed_ms(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def _onnxruntime(kind: str, layer: Products, rows: dict[str, Floats], threads: int) -> Callable[[], Any]:
    """Into memory that is bound once, as between nodes of a graph."""
    session = open_products(kind, layer, threads)
    binding = session.io_binding()
    for name, values in rows.items():
        binding.bind_cpu_input(name, values)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def _openvino(layer: Products, rows: dict[str, Floats], threads: int) -> dict[str, Callable[[], Any]]:
    """As the runtimes openvino-int8 and openvino-bf16 compute `ov_int8`; none where it is not installed."""
    if not find_spec("openvino"):
        return {}
    import openvino
    from openvino import opset13 as op

    from tinyllava_edge.compute_classes import BF16_CPU, INT8_CPU
    from tinyllava_edge.export.openvino_weights import Weights
    from tinyllava_edge.runtimes.openvino_library import compile_model

    with TemporaryDirectory() as scratch:
        weights = Weights(Path(scratch), "ov_int8")
        inputs, results = [], []
        for source, found in layer.items():
            inputs.append(op.parameter([1, -1, rows[source].shape[1]], openvino.Type.f32, source))
            for name, weight in found.items():
                weights.add(name, weight.shape, [weight])
                results.append(op.result(op.matmul(inputs[-1], weights.values(name), False, True)))
        model = openvino.Model(results, inputs, "layer")
        compiled = {
            f"openvino-{name}": compile_model(Path("layer"), model, compute, threads=threads)
            for name, compute in (("int8", INT8_CPU), ("bf16", BF16_CPU))
        }
    values = [rows[source][None] for source in layer]
    return {
        name: _keeping(weights, partial(one.request.infer, values, share_inputs=True, share_outputs=True))
        for name, one in compiled.items()
    }


def _keeping(memory: object, run: Callable[[], Any]) -> Callable[[], Any]:
    """The same, which holds memory that a library was only pointed to."""
    return lambda: (run(), memory)[0]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_session(sys.argv[1], int(sys.argv[2]))))
