"""Families that TinyLLaVA Factory never trained: transformers' own model and config.json are the oracle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from tests.benchmarks.conftest import climb_quickly
from tests.export.gguf_files import language_source
from tests.export.llamacpp import prefill_logits
from tests.integration.combinations import write_tokenizer
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.families import FAMILIES
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.cli import app
from tinyllava_edge.errors import UnsupportedModelError
from tinyllava_edge.export.language_gguf import write_language_gguf
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.gates import STAGES
from tinyllava_edge.model.vlm import load_model

PICTURE = Path(__file__).parents[1] / "fixtures" / "images" / "cat_231x153.png"
IDS = [7, *torch.randint(3, 450, (40,), generator=torch.Generator().manual_seed(1)).tolist()]
SMALL: dict[str, Any] = {
    "vocab_size": 480,  # 27 rows behind the tokens
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, **BANDS}  # keeps, mixes and stretches


def qwen25(heads: int, kv_heads: int, *, tied: bool) -> dict[str, Any]:
    """Qwen2.5's heads, each an eighth as wide; the windows' keys as published."""
    windows = {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 1}
    heads_and_width = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": 8 * heads,
    }
    rope = {"rope_type": "default", "rope_theta": 1e6}
    return {**heads_and_width, **windows, "rope_parameters": rope, "tie_word_embeddings": tied}


# Name -> family, and what its config has beside `SMALL`.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # heads wider than hidden / heads, as Qwen3-0.6B's are
    **{
        f"qwen3-{tied}": ("qwen3", {"head_dim": 32, "tie_word_embeddings": tied, "eos_token_id": 450})
        for tied in (True, False)
    },
    "qwen2.5-0.5b": ("qwen2", qwen25(14, 2, tied=True)),
    "qwen2.5-1.5b": ("qwen2", qwen25(12, 2, tied=True)),
    "qwen2.5-3b": ("qwen2", qwen25(16, 2, tied=True)),
    "qwen2.5-7b": ("qwen2", qwen25(28, 4, tied=False)),
    "qwen2.5-14b": ("qwen2", qwen25(40, 8, tied=False)),
    "qwen2.5-72b": ("qwen2", qwen25(64, 8, tied=False)),
    "llama-3.2": ("llama", {"rope_parameters": LLAMA3, "head_dim": 32, "tie_word_embeddings": True}),
    "llama-3.1": ("llama", {"rope_parameters": {**LLAMA3, "factor": 8.0}, "eos_token_id": [2, 5, 6]}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "gemma2": (
        "gemma2",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 9, "attn_logit_softcapping": 5.0},
    ),
    "gemma2-27b": ("gemma2", {"num_hidden_layers": 46, "head_dim": 32, "query_pre_attn_scalar": 16}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "eos_token_id": 450}),
    "phi3": ("phi3", {"sliding_window": 1000, "num_key_value_heads": None, "eos_token_id": 450}),
    "phi4": ("phi3", {"sliding_window": None, "rms_norm_eps": 1e-6, "eos_token_id": 450}),
}


def write_checkpoint(folder: Path, case: str) -> Any:
    """A tiny SigLIP in front of a language model that transformers made; returns that."""
    family, own = CASES[case]
    config = AutoConfig.for_model(family, **{**SMALL, **own})
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    tied, centre = config.tie_word_embeddings, float(family != "gemma2")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(centre + 0.2 * noise if "norm" in name else 0.15 * noise)
        if tied and centre:  # opinions, so that greedy answers are no ties
            model.get_input_embeddings().weight *= 8
    write_tiny_checkpoint(folder, hidden=config.hidden_size, heads=config.num_attention_heads)
    for name in ("tokenizer.model", "special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    write_tokenizer(folder, family)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "text_config": config.to_dict()}))
    weights = load_file(folder / "model.safetensors")
    weights = {name: value for name, value in weights.items() if not name.startswith("language_model.")}
    state = {f"language_model.{name}": value.clone() for name, value in model.state_dict().items()}
    if tied:
        del state["language_model.lm_head.weight"]
    save_file(weights | state, folder / "model.safetensors", metadata={"format": "pt"})
    return model.eval()


def test_the_config_that_transformers_writes_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", "qwen3-True")
    config = Checkpoint(tmp_path / "checkpoint").config
    language = config.language
    assert (language.head_dim, language.rotary_dim, language.rope_theta) == (32, 32, 1e4)
    assert (language.hidden_size, language.num_attention_heads, language.num_key_value_heads) == (64, 4, 2)
    assert (language.tie_word_embeddings, language.eos_token_ids, config.template) == (
        True,
        (450,),
        "qwen2_base",
    )


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "smollm3", "phi3"])
def test_the_defaults_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "text_config": {"model_type": family}}))
    language, expected = Checkpoint(path.parent).config.language, AutoConfig.for_model(family).to_dict()
    expected |= {"partial_rotary_factor": 1.0, **expected["rope_parameters"], "head_dim": language.head_dim}
    left_out = {"architecture", *({"hidden_act"} if family == "gemma2" else ())}
    for name, value in language.values.items():
        if name not in left_out and not (name == "num_key_value_heads" and value is None):
            assert value == expected[name], name


@pytest.mark.parametrize("case", CASES)
def test_torch_and_llamacpp_give_the_logits_of_transformers(case: str, tmp_path: Path) -> None:
    oracle = write_checkpoint(tmp_path / "checkpoint", case)
    with torch.no_grad():
        expected = oracle(input_ids=torch.tensor([IDS])).logits[0].numpy()
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    loaded = load_model(checkpoint).logits(IDS).detach().numpy()
    np.testing.assert_allclose(loaded, expected, rtol=1e-5, atol=2e-5)
    write_language_gguf(tmp_path / "f32.gguf", language_source(tmp_path / "checkpoint"), "f32")
    found = prefill_logits(tmp_path / "f32.gguf", IDS)
    gate = 1e-5 if FAMILIES[CASES[case][0]].float16_gelu else 1e-10
    assert float(np.mean((expected - found) ** 2) / np.var(expected)) <= gate


def test_every_end_of_a_list_stops_an_answer(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", "llama-3.1")
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    assert language_source(tmp_path / "checkpoint").assets.stop_ids == (2, 5, 6)
    assert CheckpointReference(checkpoint).stop_ids() == {2, 5, 6}


def test_the_context_ends_where_a_window_begins_that_llamacpp_ignores(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", "phi3")
    assert Checkpoint(tmp_path / "checkpoint").config.language.max_position_embeddings == 1000


def test_a_scale_of_the_queries_that_llamacpp_does_not_compute_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", "gemma2")
    path = tmp_path / "checkpoint" / "config.json"
    path.write_text(path.read_text().replace('"query_pre_attn_scalar": 32', '"query_pre_attn_scalar": 16'))
    with pytest.raises(UnsupportedModelError, match=r"query_pre_attn_scalar is 16; .* only 32"):
        language_source(path.parent).check()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama-3.2", "gemma2", "phi3"])
def test_a_bundle_passes_every_stage_and_answers(case: str, tmp_path: Path) -> None:
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    write_checkpoint(checkpoint, case)
    export_bundle(
        Checkpoint(checkpoint), bundle, ExportOptions(vision=("fp32",), language=("f32", "f16", "q8_0"))
    )
    report = climb_quickly(Bundle.open(bundle), CheckpointReference(Checkpoint(checkpoint), num_tokens=24))
    assert report.passed, report.verdict
    assert {result.stage for result in report.results if not result.skipped} == set(STAGES)
    answer = CliRunner().invoke(app, ["run", str(bundle), str(PICTURE), "What is this?", "--max-tokens", "4"])
    assert answer.exit_code == 0, answer.output
