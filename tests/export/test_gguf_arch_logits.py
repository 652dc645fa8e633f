"""llama.cpp computes from our GGUF file what torch computes from the checkpoint."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.export.gguf_files import language_source
from tests.export.llamacpp import prefill_logits
from tests.integration.combinations import draw_combination, write_combination
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.families import FAMILIES
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.gguf_arch import llama
from tinyllava_edge.export.language_gguf import write_language_gguf
from tinyllava_edge.model.vlm import load_model

GATE = 1e-10  # NMSE of float32 weights and float32 KV cache; measured 1e-12
GATE_OF_TABLE = 1e-5  # where llama.cpp's GELU is a table of float16 values; measured 2e-6


def nmse_against_torch(checkpoint: Path, gguf_file: Path, *, sources: Path | None = None) -> float:
    ids = [1, *torch.randint(3, 450, (40,), generator=torch.Generator().manual_seed(1)).tolist()]
    expected = load_model(Checkpoint(checkpoint, sources=sources, allow_pickle=True)).logits(ids).numpy()
    actual = prefill_logits(gguf_file, ids)
    return float(np.mean((expected - actual) ** 2) / np.var(expected))


@st.composite
def llama_sizes(draw: st.DrawFn) -> dict[str, object]:
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 4]))
    hidden = heads * 2 * draw(st.integers(max(1, 32 // heads), 128 // heads))
    return {
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "layers": draw(st.integers(1, 3)),
        "intermediate": 8 * draw(st.integers(8, 40)),
        "tied": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "rope_theta": draw(st.sampled_from([10000.0, 100000.0])),
        "seed": draw(st.integers(0, 99)),
    }


@settings(max_examples=12)
@given(llama_sizes())
def test_any_llama_gives_torchs_logits(sizes: dict[str, object]) -> None:
    with TemporaryDirectory() as folder:
        checkpoint = write_tiny_checkpoint(Path(folder) / "checkpoint", **sizes)  # type: ignore[arg-type]
        write_language_gguf(Path(folder) / "f32.gguf", language_source(checkpoint), "f32")
        assert nmse_against_torch(checkpoint, Path(folder) / "f32.gguf") <= GATE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_every_family_gives_torchs_logits(family: str, seed: int, tmp_path: Path) -> None:
    checkpoint, sources, _ = write_combination(tmp_path, draw_combination(seed, family))
    source = language_source(checkpoint, sources=sources)
    write_language_gguf(tmp_path / "f32.gguf", source, "f32")
    gate = GATE_OF_TABLE if FAMILIES[family].float16_gelu else GATE
    assert nmse_against_torch(checkpoint, tmp_path / "f32.gguf", sources=sources) <= gate


def test_attention_biases_and_a_head_size_of_its_own_give_torchs_logits(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint")
    config = (checkpoint / "config.json").read_text()
    wider = config.replace('"vocab_size"', '"attention_bias": true, "head_dim": 24, "vocab_size"', 1)
    (checkpoint / "config.json").write_text(wider)
    weights = load_file(checkpoint / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for layer in range(2):
        prefix = f"language_model.model.layers.{layer}.self_attn."
        for name, rows, columns in (("q", 96, 64), ("k", 48, 64), ("v", 48, 64), ("o", 64, 96)):
            shape = (rows, columns)
            weights[f"{prefix}{name}_proj.weight"] = 0.15 * torch.randn(shape, generator=generator)
            weights[f"{prefix}{name}_proj.bias"] = 0.15 * torch.randn(rows, generator=generator)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    write_language_gguf(tmp_path / "f32.gguf", language_source(checkpoint), "f32")
    assert nmse_against_torch(checkpoint, tmp_path / "f32.gguf") <= GATE


def test_the_judge_sees_rows_of_q_and_k_left_in_the_checkpoints_order(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "interleave", lambda tensor, heads: tensor)
    write_language_gguf(tmp_path / "f32.gguf", language_source(checkpoint), "f32")
    assert nmse_against_torch(checkpoint, tmp_path / "f32.gguf") > 1e-3
