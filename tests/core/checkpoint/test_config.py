"""What config.json says, filled from the families' defaults."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_config
from tinyllava_edge.checkpoint.config import ModelConfig
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError

# tinyllava/TinyLLaVA with TinyLlama-1.1B and SigLIP-so400m, as transformers writes it: only what differs from
# the defaults of LlamaConfig and SiglipVisionConfig (docs/sources/tinyllava.md#sub-configs-are-differences).
RELEASED = {
    "model_type": "tinyllava",
    "connector_type": "mlp2x_gelu",
    "image_aspect_ratio": "square",
    "llm_model_name_or_path": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "tokenizer_model_max_length": 2048,
    "text_config": {
        "_name_or_path": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "model_type": "llama",
        "num_hidden_layers": 22,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
    },
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "model_name_or_path": "google/siglip-so400m-patch14-384",
        "model_name_or_path2": "",
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "patch",
    "vision_model_name_or_path": "google/siglip-so400m-patch14-384",
    "torch_dtype": "float16",
}


def read(directory: Path, config: Any, **options: Any) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(config))
    return Checkpoint(directory, **options).config


def test_a_diff_is_filled_from_the_defaults_of_its_family(tmp_path: Path) -> None:
    config = read(tmp_path, RELEASED)
    language, vision = config.language, config.vision
    assert (language.vocab_size, language.num_attention_heads, language.head_dim) == (32000, 32, 64)
    assert (language.rope_theta, language.max_position_embeddings, language.norm_eps) == (10000.0, 2048, 1e-5)
    assert (language.bos_token_id, language.eos_token_ids, language.tie_word_embeddings) == (1, (2,), False)
    assert (vision.layer_norm_eps, vision.hidden_act) == (1e-6, "gelu_pytorch_tanh")
    assert (vision.num_tokens, vision.num_used_layers) == (728, 26)  # docs/sources/tinyllava.md#vision-towers
    assert (config.template, config.image_aspect_ratio, config.dtype) == ("llama", "square", "float16")


def test_the_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import LlamaConfig, SiglipVisionConfig

    empty = RELEASED | {
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "siglip_vision_model"},
    }
    config = read(tmp_path, empty)
    llama, siglip = LlamaConfig(), SiglipVisionConfig()
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    ):
        assert getattr(config.language, name) == getattr(llama, name)
    assert config.language.bos_token_id == llama.bos_token_id
    assert config.language.eos_token_ids == (llama.eos_token_id,)
    assert (config.language.num_key_value_heads, config.language.norm_eps) == (32, llama.rms_norm_eps)
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
    ):
        assert getattr(config.vision, name) == getattr(siglip, name)
    for name in ("image_size", "patch_size", "layer_norm_eps"):
        assert getattr(config.vision, name) == getattr(siglip, name)


@pytest.mark.parametrize(
    ("strategy", "layer", "tokens", "layers"),
    [
        ("patch", -2, 15, 2),
        ("cls_patch", -2, 16, 2),
        ("patch", -1, 15, 3),
        ("patch", 0, 15, 0),
        ("patch", 3, 15, 3),
    ],
)
def test_layer_and_strategy_decide_tokens_and_layers(
    tmp_path: Path, strategy: str, layer: int, tokens: int, layers: int
) -> None:
    vision = read(tmp_path, tiny_config(select_strategy=strategy, feature_layer=layer)).vision
    assert (vision.num_tokens, vision.num_used_layers) == (tokens, layers)


def test_the_template_is_given_or_stored_or_inferred(tmp_path: Path) -> None:
    config = read(tmp_path, tiny_config())
    assert (config.template, config.template_reason) == (
        "llama",
        "inferred from the language model's family 'llama'",
    )
    (tmp_path / "tinyllava_edge.json").write_text('{"template": "phi"}')
    config = Checkpoint(tmp_path).config
    assert (config.template, config.template_reason) == ("phi", "stored in tinyllava_edge.json")
    config = Checkpoint(tmp_path, template="gemma").config
    assert (config.template, config.template_reason) == ("gemma", "given by --template")


@pytest.mark.parametrize(("eos", "template"), [
    ("</s>", "llama"), ("<|end_of_text|>", "llama3"), ("<|eot_id|>", "llama3_instruct"),
    ("<|im_end|>", "qwen2_instruct"), ("<|endoftext|>", "qwen2_base"),  # SmolLM2's instruct and base models
])  # fmt: skip
def test_a_llamas_template_follows_the_end_of_its_tokenizer(tmp_path: Path, eos: str, template: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    assert read(tmp_path, tiny_config()).template == template


def test_a_damaged_sidecar_is_named(tmp_path: Path) -> None:
    (tmp_path / "tinyllava_edge.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tinyllava_edge.json: not valid JSON"):
        read(tmp_path, tiny_config())


def test_rope_is_read_as_transformers_5_writes_it(tmp_path: Path) -> None:
    config = tiny_config()
    del config["text_config"]["rope_theta"]
    config["text_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    assert read(tmp_path, config).language.rope_theta == 500000.0


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "some_new_switch", False),
        ("text_config", "some_new_switch", None),
        ("text_config", "rope_scaling", None),
        ("text_config", "rope_scaling", {"rope_type": "default"}),
        ("text_config", "layer_types", ["full_attention"] * 2),
        ("text_config", "id2label", {"0": "LABEL_0"}),
        ("text_config", "top_k", 50),
        ("text_config", "pad_token_id", 7),
        ("text_config", "torch_dtype", "float16"),
        ("text_config", "is_llama_config", True),  # SmolLM2
        ("text_config", "transformers.js_config", {"kv_cache_dtype": {"q4f16": "float16"}}),
        ("text_config", "max_sequence_length", 16384),  # Vicuna 16k
        ("text_config", "sliding_window_size", 4096),  # Gemma-2 9B
        ("text_config", "_attn_implementation_autoset", True),
        ("text_config", "unsloth_version", "2025.1.1"),
        ("vision_config", "num_channels", 3),
    ],
)
def test_a_key_without_effect_is_accepted(tmp_path: Path, part: str, key: str, value: Any) -> None:
    config = tiny_config()
    config[part][key] = value
    assert read(tmp_path, config) == read(tmp_path, tiny_config())


def test_a_whole_number_is_a_float_where_one_is_meant(tmp_path: Path) -> None:
    """Transformers 5 refuses 1 where it has 1e-06; JSON writers drop the `.0`."""
    config = tiny_config()
    config["text_config"] |= {"rms_norm_eps": 1, "rope_theta": 10000}
    values = read(tmp_path, config).language.values
    assert [type(values[name]) for name in ("rms_norm_eps", "rope_theta")] == [float, float]
