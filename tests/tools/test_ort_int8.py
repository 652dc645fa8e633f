"""Products in ONNX Runtime's integers, against numpy's; outliers shifted into weights; a cache handed on."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import LlamaConfig, LlamaForCausalLM

from tinyllava_edge.runtimes.ort import PROVIDERS
from tools.ort_int8.accuracy import Trial, figures, products_of
from tools.ort_int8.graphs import KINDS, Floats, open_products, products_graph
from tools.ort_int8.smooth import smooth, watched_inputs

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(24, 64)).astype(np.float32)
ROWS[0] *= 100  # one row has outliers, as the first one of a language model
ROWS[1] = 0
WEIGHTS = {name: RNG.normal(size=(size, 64)).astype(np.float32) for name, size in (("a", 48), ("b", 32))}


def errors(kind: str) -> Floats:
    """Of each row, relative to what it should be."""
    found = open_products(kind, {"x": WEIGHTS}, 1).run(["a", "b"], {"x": ROWS})
    expected = [ROWS @ weight.T for weight in WEIGHTS.values()]
    wide: list[Floats] = [np.concatenate(each, axis=1) for each in (found, expected)]
    difference: Floats = np.linalg.norm(wide[0] - wide[1], axis=1)
    relative: Floats = difference / np.maximum(np.linalg.norm(wide[1], axis=1), 1e-9)
    return relative


@pytest.mark.parametrize(
    ("kind", "bound"), [("float32", 1e-6), ("rows", 0.015), ("blocks8", 0.015), ("blocks4", 0.15)]
)
def test_a_row_of_outliers_costs_the_others_nothing(kind: str, bound: float) -> None:
    assert errors(kind).max() < bound


def test_one_scale_for_all_rows_costs_those_beside_a_row_of_outliers() -> None:
    found = errors("tensor")
    assert found[0] < 0.015
    assert found[2:].min() > 0.1


def test_one_scale_for_all_rows_is_what_onnx_runtimes_own_quantizer_makes(tmp_path: Path) -> None:
    found = open_products("tensor", {"x": WEIGHTS}, 1).run(["a", "b"], {"x": ROWS})
    proto = onnx.load_model_from_string(products_graph("float32", {"x": WEIGHTS}))
    helper.set_model_props(proto, {"onnx.quant.pre_process": "onnxruntime.quant"})  # else it warns
    quantize_dynamic(proto, tmp_path / "theirs.onnx", per_channel=True, weight_type=QuantType.QInt8)
    session = onnxruntime.InferenceSession(tmp_path / "theirs.onnx", providers=PROVIDERS)
    for ours, theirs in zip(found, session.run(["a", "b"], {"x": ROWS}), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_rows_are_rounded_to_steps_of_their_own() -> None:
    steps = np.maximum(np.abs(ROWS).max(axis=1, keepdims=True) / np.float32(127), 1e-30)
    weight = WEIGHTS["a"]
    scales = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    expected = (np.rint(ROWS / steps) * steps) @ (np.rint(weight / scales) * scales).T
    (found,) = open_products("rows", {"x": {"a": weight}}, 1).run(["a"], {"x": ROWS})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def language() -> Any:
    """A small Llama of heads that share keys, whose norms make outliers in every fourth column."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model.eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[::4] = 60
            layer.post_attention_layernorm.weight[::4] = 60
    return model


def trial(language: Any) -> Trial:
    rows = torch.randn(1, 20, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Trial(rows[0], 8, language(inputs_embeds=rows).logits[0, -8:].numpy())


def test_smoothing_says_the_same_in_float32_and_more_in_int8(language: Any) -> None:
    held = trial(language)
    before = figures(language, [held], products_of(language, lambda _: "tensor"), None)
    with watched_inputs(language) as largest, torch.no_grad():
        language(inputs_embeds=held.rows[None])
    smoothed = copy.deepcopy(language)
    smooth(smoothed, largest, 0.5)
    assert figures(smoothed, [held], {}, None)["mean_kld"] < 1e-9
    after = figures(smoothed, [held], products_of(smoothed, lambda _: "tensor"), None)
    assert after["mean_kld"] < before["mean_kld"] / 2


def test_answers_are_computed_behind_the_keys_that_the_prefill_left(language: Any) -> None:
    held = trial(language)
    rows, blocks = products_of(language, lambda _: "rows"), products_of(language, lambda _: "blocks4")
    whole = figures(language, [held], rows, None)
    assert figures(language, [held], rows, rows) == pytest.approx(whole, rel=1e-3)
    handed_on = figures(language, [held], rows, blocks)
    assert whole["mean_kld"] < handed_on["mean_kld"] < figures(language, [held], blocks, None)["mean_kld"] * 2


_SMALL = """
import json
from tools.ort_int8 import speed
speed.SHAPES, speed.ROWS = {"small": (64, 96, 64, 32, 2)}, 8
print(json.dumps(speed._session("small", 3)))
"""


def test_every_way_of_a_session_is_timed() -> None:
    """In a process of its own, as the tool has it."""
    done = subprocess.run([sys.executable, "-c", _SMALL], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {*KINDS} <= {*found}
    assert all(len(blocks) == 3 and all(len(pair) == 2 for pair in blocks) for blocks in found.values())
