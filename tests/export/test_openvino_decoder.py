"""The graph of every family computes what the reference model does, in one piece and step by step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

pytest.importorskip("openvino")

from openvino import opset13 as op

from tinyllava_edge.checkpoint.families import FAMILIES
from tinyllava_edge.checkpoint.read_config import language_config
from tinyllava_edge.export.openvino_decoder import Decoder
from tinyllava_edge.metrics import nmse
from tinyllava_edge.model.language_model import build_language_model
from tinyllava_edge.runtimes.openvino_library import compile_model

Floats = npt.NDArray[np.float32]
SMALL: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
OPENELM = {
    "model_type": "openelm",
    "vocab_size": 90,
    "model_dim": 64,
    "head_dim": 16,
    "num_transformer_layers": 2,
    "num_query_heads": [2, 4],
    "num_kv_heads": [1, 2],
    "ffn_multipliers": [0.5, 2.25],
    "ffn_dim_divisor": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 9, "attn_logit_softcapping": 5.0}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "attention_bias": True},
    "llama3": {
        "model_type": "llama",
        "head_dim": 32,
        "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, **BANDS},
    },
    "llama-linear": {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "gemma": {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 32},
    "gemma2": {"model_type": "gemma2", **WINDOW},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 5},
    "phi3": {"model_type": "phi3"},
    "phi": {"model_type": "phi", "num_key_value_heads": 4},
    "stablelm": {"model_type": "stablelm", "use_qkv_bias": True, "num_key_value_heads": 4},
    "openelm": OPENELM,
}
IDS = np.random.default_rng(0).integers(3, 90, 24).astype(np.int32)


class Graph:
    """A compiled decoder over a state dict."""

    def __init__(self, config: Any, state: dict[str, Floats]) -> None:
        def rows(name: str, ids: Any) -> Any:
            return op.gather(op.constant(state[name]), ids, op.constant(np.int32(0)))

        model = Decoder(config, lambda name: op.constant(state[name]), rows, state.__contains__).build()
        self._compiled = compile_model(Path("x"), model, threads=1, KV_CACHE_PRECISION="f32")
        self._hidden = config.hidden_size

    def run(
        self,
        position: int,
        ids: npt.NDArray[np.int32],
        rows: Floats | None = None,
        held: Sequence[int] | None = None,
    ) -> Floats:
        """`held`: positions of the rows in the cache; by default all that are before."""
        count = len(ids)
        keys = [*(range(position) if held is None else held), *range(position, position + count)]
        nothing = np.zeros((1, 1, self._hidden), dtype=np.float32)
        inputs = {
            "input_ids": ids[None],
            "inputs_embeds": nothing if rows is None else rows[None],
            "position_ids": np.arange(position, position + count, dtype=np.int32)[None],
            "key_positions": np.array(keys, dtype=np.int32),
            "wanted": np.arange(count, dtype=np.int32),
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        return np.asarray(self._compiled.request.infer(inputs)["logits"][0])

    def reset(self) -> None:
        self._compiled.request.reset_state()


def test_every_family_has_a_case() -> None:
    assert {case["model_type"] for case in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_are_the_reference_models(case: str) -> None:
    own = CASES[case]
    raw = own if case == "openelm" else {**SMALL, **own}
    config = language_config({"text_config": raw}, Path("config.json"))
    torch.manual_seed(0)
    model = build_language_model(config).float().eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        parameter.copy_(0.5 + 0.2 * noise if "norm" in name else 0.15 * noise)
    state = {name: value.numpy() for name, value in model.named_parameters()}
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    rows = embeddings(torch.from_numpy(IDS).long())[None]
    expected = model(inputs_embeds=rows, use_cache=False).logits[0].numpy()
    graph = Graph(config, state)
    assert nmse(expected, graph.run(0, IDS)) < 1e-11
    graph.reset()
    parts = [graph.run(0, IDS[:13])]
    parts += [graph.run(13, np.full(7, -1, dtype=np.int32), rows[0, 13:20].numpy())]  # a picture's
    parts += [graph.run(place, IDS[place : place + 1]) for place in range(20, 24)]
    assert nmse(expected, np.concatenate(parts)) < 1e-11
    held = [*range(15), *[1 << 30] * 9]  # cut off, and left in the cache where no query sees it
    assert nmse(expected[15:], graph.run(15, IDS[15:], held=held)) < 1e-11
