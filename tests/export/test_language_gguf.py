"""The language model as GGUF in float32 and float16."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export.gguf_files import change_weights, language_source
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.errors import ExportError
from tinyllava_edge.export.language_gguf import LanguageSource, write_language_gguf

Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"


def read_fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def test_metadata_are_the_checkpoints_hyperparameters(source: LanguageSource, tmp_path: Path) -> None:
    write_language_gguf(tmp_path / "f32.gguf", source, "f32")
    fields = read_fields(tmp_path / "f32.gguf")
    # Written out by hand from tests/tiny.py's defaults.
    expected = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 0,
        "llama.vocab_size": 450,
        "llama.context_length": 1024,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 16,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }
    assert {name: fields[name] for name in expected} == expected


def test_rows_of_q_and_k_alternate_between_the_two_halves_of_each_head(
    source: LanguageSource, checkpoint: Path, tmp_path: Path
) -> None:
    write_language_gguf(tmp_path / "f32.gguf", source, "f32")
    written = read_arrays(tmp_path / "f32.gguf")
    weights = load_file(checkpoint / "model.safetensors")
    for part, heads in (("q", 4), ("k", 2)):
        head_dim = 16
        # Row 2 i of a head is row i of its first half, row 2 i + 1 row i of its second (llama.cpp's RoPE).
        order = [
            head * head_dim + half * head_dim // 2 + i
            for head in range(heads)
            for i in range(head_dim // 2)
            for half in (0, 1)
        ]
        stored = weights[f"language_model.model.layers.1.self_attn.{part}_proj.weight"].numpy()
        np.testing.assert_array_equal(written[f"blk.1.attn_{part}.weight"], stored[order])


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tied", tied=True)
    # Upstream's trainer may have written the second name as well.
    change_weights(checkpoint, lambda t: t.update({
        "language_model.lm_head.weight": t["language_model.model.embed_tokens.weight"].clone()
    }))  # fmt: skip
    write_language_gguf(tmp_path / "f32.gguf", language_source(checkpoint), "f32")
    written = read_arrays(tmp_path / "f32.gguf")
    assert "output.weight" not in written
    assert written["token_embd.weight"].shape == (450, 64)


def test_float16_rounds_matrices_and_keeps_vectors_in_float32(
    source: LanguageSource, checkpoint: Path, tmp_path: Path
) -> None:
    write_language_gguf(tmp_path / "f16.gguf", source, "f16")
    written = read_arrays(tmp_path / "f16.gguf")
    weights = load_file(checkpoint / "model.safetensors")
    down = weights["language_model.model.layers.0.mlp.down_proj.weight"].numpy()
    norm = weights["language_model.model.norm.weight"].numpy()
    np.testing.assert_array_equal(written["blk.0.ffn_down.weight"], down.astype(np.float16))
    np.testing.assert_array_equal(written["output_norm.weight"], norm)
    assert written["output_norm.weight"].dtype == np.float32
    assert read_fields(tmp_path / "f16.gguf")["general.file_type"] == 1


def test_sharded_and_flat_layouts_give_the_same_bytes(
    source: LanguageSource, checkpoint: Path, tmp_path: Path
) -> None:
    sharded = Path(shutil.copytree(checkpoint, tmp_path / "sharded"))
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(weights, key=lambda name: name[::-1])  # an order of no meaning
    shards = {"b.safetensors": names[:20], "a.safetensors": names[20:]}
    for shard, members in shards.items():
        save_file({name: weights[name] for name in members}, sharded / shard)
    lines = ",".join(f'"{name}":"{shard}"' for shard, members in shards.items() for name in members)
    (sharded / "model.safetensors.index.json").write_text(f'{{"weight_map":{{{lines}}}}}')
    write_language_gguf(tmp_path / "flat.gguf", source, "f16")
    write_language_gguf(tmp_path / "sharded.gguf", language_source(sharded), "f16")
    assert (tmp_path / "flat.gguf").read_bytes() == (tmp_path / "sharded.gguf").read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({Q_PROJ: t[Q_PROJ][:32]}), [Q_PROJ, "[32, 64]", "[64, 64]"]),
        (lambda t: t[Q_PROJ].view(-1)[7:8].fill_(torch.nan), [Q_PROJ, "NaN"]),
        (lambda t: t[Q_PROJ].view(-1)[7:8].fill_(-torch.inf), [Q_PROJ, "infinity"]),
        (lambda t: t[Q_PROJ].view(-1)[7:8].fill_(70000.0), [Q_PROJ, "70000", "65504"]),
        (lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.int8)}), [Q_PROJ, "torch.int8"]),
        (lambda t: t.pop(Q_PROJ), [Q_PROJ, "1 tensors", "missing"]),
        (lambda t: t.update({f"{Q_PROJ}_scale": t[Q_PROJ].clone()}), [f"{Q_PROJ}_scale", "no place"]),
    ],
)
def test_a_tensor_that_cannot_be_written_is_named(
    checkpoint: Path, tmp_path: Path, change: Any, words: list[str]
) -> None:
    spoilt = Path(shutil.copytree(checkpoint, tmp_path / "spoilt"))
    change_weights(spoilt, change)
    with pytest.raises(ExportError) as caught:
        write_language_gguf(tmp_path / "f16.gguf", language_source(spoilt), "f16")
    for word in words:
        assert word in str(caught.value)


def test_a_tokenizer_larger_than_the_model_is_refused_before_any_work(
    checkpoint: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace("450", "300"))
    with pytest.raises(ExportError, match="the model only 300 rows"):
        language_source(other).check()


def test_the_manifest_can_say_that_gemmas_graph_scales_every_row(source: LanguageSource) -> None:
    language = source.checkpoint.config.language  # hidden size 64
    assert language.embedding_scale == 1.0
    assert replace(language, architecture="gemma").embedding_scale == 8.0
