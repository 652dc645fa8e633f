"""Floors of stages from shapes in files, and the rates of this machine. CPU; small sizes."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tinyllava_edge.benchmarks.bench import roofline
from tinyllava_edge.benchmarks.bench.floors import floors_of, read_work, types_of
from tinyllava_edge.benchmarks.bench.onnx_product import matmul_graph
from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.gguf_header import read_gguf_header
from tinyllava_edge.onnx_shapes import product_flops
from tinyllava_edge.runtimes.base import BackendOptions

ROOF = {"threads": 2, "gflops": {"fp32": 100.0, "int8": 400.0}, "by": {}, "read_gb_per_s": 10.0}
WARM = {
    "prompt_tokens": 77,
    "tokens": 64,
    "token_ms": 1.0,
    "stages_ms": {"vision": 10.0, "prefill": 5.0},
}


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return Bundle.open(bundle_path("nano"))


def cell_of(bundle: Bundle, runtime: str = "onnxruntime+llamacpp", **options: Any) -> Cell:
    return Cell("a", "nano", runtime, bundle.root, BackendOptions(**options))


def test_products_and_convolutions_of_a_graph_are_counted(tmp_path: Path) -> None:
    make, values = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    shapes: dict[str, list[str | int | None]] = {
        "pixels": ["n", 3, 8, 8],
        "patches": ["n", 5, 2, 2],
        "flat": ["n", 4, 5],
        "out": ["n", 4, 7],
    }
    infos = {name: values(name, 1, shape) for name, shape in shapes.items()}
    weights = [
        onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name)
        for name, shape in (("kernel", (5, 3, 4, 4)), ("matrix", (5, 7)))
    ]
    nodes = [
        make("Conv", ["pixels", "kernel"], ["patches"], strides=[4, 4]),
        make("Identity", ["patches"], ["flat"]),  # shapes are believed, nothing is run
        make("MatMul", ["flat", "matrix"], ["out"]),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [infos["pixels"]], [infos["out"]], weights, value_info=[infos["patches"], infos["flat"]]
    )
    path = tmp_path / "g.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    assert product_flops(path) == 2 * (5 * 2 * 2) * (3 * 4 * 4) + 2 * (4 * 7) * 5
    del graph.value_info[:]
    onnx.save(onnx.helper.make_model(graph), path)
    assert product_flops(path) is None


def test_nanos_tower_multiplies_each_weight_with_each_token(nano: Bundle) -> None:
    """Attention comes on top, and the position table is added and not multiplied: within a fifth."""
    parts = nano.manifest.parts
    tokens = nano.manifest.vision.num_tokens + 1  # one is dropped behind the tower
    weights = 2 * tokens * (parts["vision_tower"].parameters + parts["connector"].parameters)
    flops = read_work(cell_of(nano, vision="fp16", language="f16"), nano).vision_flops
    assert flops is not None
    assert 0.6 * weights < flops < 1.2 * weights


def test_a_token_reads_all_weights_but_the_table(nano: Bundle) -> None:
    """Held against the parameters that the exporter counted in the checkpoint, and the file's size."""
    spec = nano.manifest.language
    work = read_work(cell_of(nano, vision="fp16", language="q8_0"), nano)
    path = nano.path(nano.variant("language", "q8_0").files[0])
    tensors = read_gguf_header(path).tensors
    norms = sum(prod(tensor.shape) for tensor in tensors.values() if len(tensor.shape) == 1)
    tied = "output.weight" not in tensors
    table = 0 if tied else spec.vocab_size * spec.hidden_size
    counted = work.block_values + work.head_values + norms + table
    assert counted == nano.manifest.parts["language_model"].parameters
    assert work.head_values == spec.vocab_size * spec.hidden_size
    assert work.token_bytes < path.stat().st_size
    assert work.token_bytes == pytest.approx((work.block_values + work.head_values) * 34 / 32, rel=0.01)
    assert work.kv_values == 2 * 3 * 2 * 64  # keys and values, layers, heads, size of a head
    assert work.bytes_per_token(100, 2.0) - work.token_bytes == 100 * work.kv_values * 2


def test_a_stages_share_is_its_floor_over_its_time(nano: Bundle) -> None:
    cell = cell_of(nano, vision="fp16", language="q8_0")
    work = read_work(cell, nano)
    floors = floors_of(cell, nano, WARM, ROOF)
    assert floors is not None
    assert work.vision_flops is not None
    assert floors["vision"]["type"] == "fp32"
    assert floors["vision"]["ms"] == pytest.approx(work.vision_flops / 100e9 * 1e3)
    assert floors["vision"]["share"] == pytest.approx(floors["vision"]["ms"] / 10)
    pairs = 77 * 78 / 2  # each position sees itself and those before it
    flops = 2 * (work.block_values * 77 + work.head_values) + 4 * 3 * 4 * 64 * pairs
    assert (floors["prefill"]["type"], floors["prefill"]["flops"]) == ("int8", flops)
    assert floors["token"]["ms"] == pytest.approx(floors["token"]["bytes"] / 10e9 * 1e3)
    without = floors_of(cell, nano, WARM, {**ROOF, "gflops": {"fp32": 100.0}})
    assert without is not None
    assert without["prefill"]["type"] == "fp32"  # where nothing here multiplies int8
    assert floors_of(cell, nano, WARM, None) is None
    assert floors_of(cell_of(nano, runtime="tensorrt+llamacpp"), nano, WARM, ROOF) is None


@pytest.mark.parametrize(
    ("vision", "language", "types"),
    [
        ("fp16", "f16", ("fp32", "fp32")),
        ("int8", "q4_k_m", ("int8", "int8")),
        ("int8_fp16", "bf16", ("int8", "bf16")),
        (None, None, ("fp32", "fp32")),
    ],
)
def test_what_a_variant_multiplies_in(
    nano: Bundle, vision: str | None, language: str | None, types: tuple[str, str]
) -> None:
    assert types_of(cell_of(nano, vision=vision, language=language)) == types


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_the_graph_of_one_product_is_valid_and_gives_it(kind: str) -> None:
    content = matmul_graph(kind, 200)  # a size that takes two bytes
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    left = np.full((200, 200), 3, np.float32 if kind == "fp32" else np.uint8)
    (product,) = session.run(None, {"left": left})
    assert (product == 600).all()


def test_rates_are_the_best_of_what_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_SIZES", (32,)), ("_SMALL_SIZE", 16), ("_SECONDS", 0.0), ("_READ_BYTES", 1 << 20)):
        monkeypatch.setattr(roofline, name, value)
    found = roofline.measure_here(1)
    assert set(found["gflops"]) >= {"fp32", "int8"}
    assert found["gflops"].keys() == found["by"].keys()
    assert min(*found["gflops"].values(), found["read_gb_per_s"]) > 0
    monkeypatch.setattr(roofline, "find_spec", lambda name: None)
    assert set(roofline.measure_here(1)["gflops"]) == {"fp32"}  # numpy is always there


@pytest.mark.slow
def test_the_roof_is_measured_in_a_process_of_its_own() -> None:
    found = roofline.measure_roof(1)
    assert found["threads"] == 1
    assert found["gflops"]["fp32"] > 0.1
