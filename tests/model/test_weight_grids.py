"""Grids of weights, against the programs that write them."""

import ctypes
import json
import os
import platform
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch

from tests.export.gguf_files import language_source
from tests.golden import CHECKPOINT_NAMES, golden_checkpoint, shared_fixtures
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.export.language_gguf import LanguageSource, write_language_gguf
from tinyllava_edge.export.quantize import quantize_gguf
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.model.weight_grids import (
    Q4_0_BLOCK,
    int8_steps,
    q4_0_layers,
    round_to_int8,
    round_to_q4_0,
)

Q4_0 = gguf.GGMLQuantizationType.Q4_0
# FMA, which rounds once, is what compilers take there.
ROUNDS_TWICE = platform.machine().lower() in ("x86_64", "amd64")


def _random(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def _edge_blocks() -> torch.Tensor:
    """[blocks, 32]: zeros, subnormal values and scales, both signs of the largest, ties, one value."""
    halves = (torch.arange(32) % 16 - 8).float() + 0.5
    ramp = torch.linspace(-1, 1, 32)
    lone = torch.zeros(32)
    lone[5] = -3
    signs = torch.tensor([1.0, -1.0]).repeat(16)
    blocks = [torch.zeros(32), ramp * 1e-42, ramp * 1e-9, ramp * 1e-6, lone, -lone, signs, -signs]
    blocks += [halves, -halves, halves.clamp(min=-7.5), ramp, -ramp, ramp.abs(), -ramp.abs(), ramp * 1e4]
    exact = torch.arange(32).float() % 16 - 8  # every step, at a scale of 1
    tied = exact + 0.5 * (exact > -8) * (exact < 7)  # all of them half way, but the two ends
    return torch.stack([*blocks, exact, tied, -tied])


def _as_llamacpp(weight: torch.Tensor) -> torch.Tensor:
    """What llama.cpp's quantizer makes of rows, by its own function, and gguf's dequantization of that."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    name = {"Windows": "ggml-base.dll", "Darwin": "libggml-base.dylib"}.get(
        platform.system(), "libggml-base.so"
    )
    quantize = ctypes.CDLL(os.fspath(folder / name)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    source = np.ascontiguousarray(weight.numpy())
    rows, columns = source.shape
    written = np.zeros((rows, columns // 32 * 18), np.uint8)  # a float16 and 32 halves of a byte
    assert quantize(Q4_0, source.ctypes.data, written.ctypes.data, 0, rows, columns, None) == written.nbytes
    return torch.from_numpy(gguf.quants.dequantize(written, Q4_0))


def _as_gguf(weight: torch.Tensor) -> torch.Tensor:
    with np.errstate(all="ignore"):  # it divides by zero, and takes the other branch
        return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), Q4_0), Q4_0))


@pytest.mark.parametrize("make", [_as_llamacpp, _as_gguf])
@pytest.mark.parametrize("seed", range(3))
def test_q4_0_is_that_of_llamacpp_and_of_gguf(make, seed: int) -> None:  # type: ignore[no-untyped-def]
    weight = _random(256, 512, seed) * 10.0 ** _random(256, 1, seed + 10)
    assert torch.equal(round_to_q4_0(weight), make(weight))


@pytest.mark.parametrize("make", [_as_llamacpp, _as_gguf])
def test_edge_blocks_are_theirs_too(make) -> None:  # type: ignore[no-untyped-def]
    blocks = _edge_blocks()
    found = round_to_q4_0(blocks)
    assert torch.equal(found, make(blocks))
    assert found.isfinite().all()
    assert torch.equal(found[0], blocks[0])
    assert torch.equal(found[16], blocks[16])  # every step at a scale that float16 holds
    assert torch.equal(found[6], -found[7])  # the first of two that are largest decides which end is exact


@pytest.mark.skipif(not ROUNDS_TWICE, reason="compilers join product and sum on this processor")
def test_product_and_sum_are_rounded_apart() -> None:
    """One value of 20 million random ones, at which it matters."""
    weight = torch.zeros(1, 32)
    weight[0, :2] = torch.tensor([2.3759751319885254, -1.3364858627319336])
    found = round_to_q4_0(weight)
    assert torch.equal(found, _as_llamacpp(weight))
    joined = -1.3364858627319336 * float(1 / (weight[0, 0] / -8)) + 8.5  # in float64: rounded once
    assert (int(torch.tensor(joined)) - 8) * (weight[0, 0] / -8).half() != found[0, 1]


def test_what_is_on_a_grid_stays_as_it_is() -> None:
    weight = torch.cat(
        [_random(2048, 96) * 10.0 ** _random(2048, 1, 1).clamp(-3, 3), _edge_blocks().repeat(1, 3)]
    )
    for round_to in (round_to_q4_0, round_to_int8):
        once = round_to(weight)
        assert torch.equal(round_to(once), once), round_to.__name__


def test_int8_has_127_steps_a_side_of_the_largest_weight_of_an_output() -> None:
    weight = torch.tensor([[0.0, 0.0], [-2.54, 1.0], [127.0, 0.5], [127.0, 1.5], [1e-40, 0.0]])
    steps, scales = int8_steps(weight)
    assert steps.tolist() == [[0, 0], [-127, 50], [127, 0], [127, 2], [0, 0]]  # a half to the even one
    torch.testing.assert_close(scales[:, 0], torch.tensor([1.0, 0.02, 1.0, 1.0, 1.0]))


def _files_q4_0(source: LanguageSource, folder: Path) -> set[str]:
    write_language_gguf(folder / "f32.gguf", source, "f32")
    quantize_gguf(folder / "f32.gguf", folder / "q4_0.gguf", "q4_0")
    return {t.name for t in gguf.GGUFReader(folder / "q4_0.gguf").tensors if t.tensor_type == Q4_0}


@pytest.mark.parametrize("name", [*CHECKPOINT_NAMES, "tied", "untied"])
def test_the_layers_are_those_that_llamacpp_writes_as_q4_0(name: str, tmp_path: Path) -> None:
    if name.endswith("tied"):
        folder, sources = write_tiny_checkpoint(tmp_path / "model", tied=name == "tied"), None
    else:
        folder, sources = golden_checkpoint(name) / "model", shared_fixtures() / "sources"
    source = language_source(folder, sources=sources)
    with torch.device("meta"):
        layers = q4_0_layers(TinyLlava(source.checkpoint.config))
    widths = {layer.weight.shape[1] for layer in layers.values()}
    if any(width % Q4_0_BLOCK for width in widths):
        pytest.skip(f"{json.dumps(sorted(widths))}: rows that have no blocks of 32")
    rules, split = source.rules(), source.architecture().split
    expected = set()
    for layer_name, layer in layers.items():
        weight = torch.empty(layer.weight.shape)
        stored = f"{layer_name.removeprefix('language_model.')}.weight"
        expected |= {rules[f"language_model.{own}"].name for own, _ in split(stored, weight)}
    assert expected == _files_q4_0(source, tmp_path)
