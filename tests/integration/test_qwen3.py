"""Qwen3, which TinyLLaVA Factory never trained: transformers' own model and config.json are the oracle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner

from tests.benchmarks.conftest import climb_quickly
from tests.export.gguf_files import language_source
from tests.export.llamacpp import prefill_logits
from tests.integration.combinations import write_tokenizer
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.cli import app
from tinyllava_edge.export.language_gguf import write_language_gguf
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.gates import STAGES
from tinyllava_edge.model.vlm import load_model

PICTURE = Path(__file__).parents[1] / "fixtures" / "images" / "cat_231x153.png"
IDS = [7, *torch.randint(3, 450, (40,), generator=torch.Generator().manual_seed(1)).tolist()]


def write_qwen3_checkpoint(folder: Path, *, tied: bool) -> Any:
    """A tiny SigLIP in front of a Qwen3 whose heads are wider than hidden / heads, as Qwen3-0.6B's are."""
    config = Qwen3Config(
        vocab_size=480,  # 27 rows behind the tokens
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=tied,
        eos_token_id=450,
    )
    torch.manual_seed(0)
    model: Any = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)
        model.get_input_embeddings().weight *= (
            8 if tied else 1
        )  # opinions, so that greedy answers are no ties
    write_tiny_checkpoint(folder)
    for name in ("tokenizer.model", "special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    write_tokenizer(folder, "qwen3")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "text_config": config.to_dict()}))
    weights = load_file(folder / "model.safetensors")
    weights = {name: value for name, value in weights.items() if not name.startswith("language_model.")}
    state = {f"language_model.{name}": value.clone() for name, value in model.state_dict().items()}
    if tied:
        del state["language_model.lm_head.weight"]
    save_file(weights | state, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def test_the_config_that_transformers_writes_is_read(tmp_path: Path) -> None:
    write_qwen3_checkpoint(tmp_path / "checkpoint", tied=True)
    config = Checkpoint(tmp_path / "checkpoint").config
    language = config.language
    assert (language.head_dim, language.rotary_dim, language.rope_theta) == (32, 32, 1e6)
    assert (language.hidden_size, language.num_attention_heads, language.num_key_value_heads) == (64, 4, 2)
    assert (language.tie_word_embeddings, language.eos_token_id, config.template) == (True, 450, "qwen2_base")


def test_the_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "text_config": {"model_type": "qwen3"}}))
    language, expected = Checkpoint(path.parent).config.language, Qwen3Config().to_dict()
    assert language.rope_theta == expected["rope_parameters"]["rope_theta"]
    for name, value in language.values.items():
        if name not in ("architecture", "rope_theta"):
            assert value == expected[name], name


@pytest.mark.parametrize("tied", [True, False])
def test_torch_and_llamacpp_give_the_logits_of_transformers(tied: bool, tmp_path: Path) -> None:
    oracle = write_qwen3_checkpoint(tmp_path / "checkpoint", tied=tied)
    with torch.no_grad():
        expected = oracle(input_ids=torch.tensor([IDS])).logits[0].numpy()
    loaded = load_model(Checkpoint(tmp_path / "checkpoint")).logits(IDS).detach().numpy()
    np.testing.assert_allclose(loaded, expected, rtol=1e-5, atol=1e-5)
    write_language_gguf(tmp_path / "f32.gguf", language_source(tmp_path / "checkpoint"), "f32")
    found = prefill_logits(tmp_path / "f32.gguf", IDS)
    assert float(np.mean((expected - found) ** 2) / np.var(expected)) <= 1e-10


@pytest.mark.slow
def test_a_bundle_passes_every_stage_and_answers(tmp_path: Path) -> None:
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    write_qwen3_checkpoint(checkpoint, tied=True)
    export_bundle(checkpoint, bundle, ExportOptions(vision=("fp32",), language=("f32", "f16", "q8_0")))
    report = climb_quickly(Bundle.open(bundle), CheckpointReference(Checkpoint(checkpoint), num_tokens=24))
    assert report.passed, report.verdict
    assert {result.stage for result in report.results if not result.skipped} == set(STAGES)
    answer = CliRunner().invoke(app, ["run", str(bundle), str(PICTURE), "What is this?", "--max-tokens", "4"])
    assert answer.exit_code == 0, answer.output
