"""A config.json with a value that is unknown, impossible or a lie: one typed error that names it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny import tiny_config
from tinyllava_edge.checkpoint.config import ModelConfig
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

PARTS = ("text_config", "vision_config")


def read_changed(directory: Path, key: str, value: Any) -> ModelConfig:
    """Read a small config with one value changed; `text_config.vocab_size` is inside an object."""
    config = place = tiny_config()
    *parents, last = key.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value
    (directory / "config.json").write_text(json.dumps(config))
    return Checkpoint(directory).config


def short(value: Any) -> str:
    """Name of a test's case."""
    return repr(value)[:9]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_config.rope_scaling", {"type": "yarn", "factor": 2.0}),
        ("text_config.rope_scaling", {"type": ["linear"], "factor": 2.0}),
        ("text_config.rope_scaling", {"type": "linear", "factor": 2.0, "beta_fast": 32}),
        ("text_config.rope_parameters", {"rope_type": "longrope", "rope_theta": 1e6, "factor": 8.0}),
        ("vision_config.rope_scaling", {"type": "linear", "factor": 2.0}),
        ("text_config.mlp_bias", True),
        ("text_config.hidden_act", "gelu"),
        ("text_config.some_new_switch", [1]),
        ("text_config.quantization_config", {"load_in_8bit": True}),
        ("text_config.layer_types", ["sliding_attention", "full_attention"]),
        ("vision_config.some_new_switch", "on"),
        ("vision_config.num_channels", 1),
        ("vision_config.use_swiglu_ffn", True),
        ("vision_config.qkv_bias", False),
        ("vision_config.num_register_tokens", 4),
        ("vision_config.hidden_act", "softsign"),
    ],
)
def test_a_key_that_might_change_the_maths_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"config.json: {key}"):
        read_changed(tmp_path, key, value)


@pytest.mark.parametrize(
    ("key", "value", "supported"),
    [
        ("model_type", "qwen2_vl", "TinyLLaVA Factory"),
        ("model_type", None, "TinyLLaVA Factory"),
        ("text_config.model_type", "mamba", "llama"),
        ("text_config.model_type", ["llama"], "llama"),
        ("vision_config.model_type", "swin", "siglip_vision_model"),
        ("vision_config.model_type", "siglip2_vision_model", "siglip_vision_model"),
        ("vision_config.model_type", "dinov2_with_registers", "dinov2"),
        ("connector_type", "mof_mlp", "two towers"),
        ("vision_config.model_type", None, "siglip_vision_model"),
        ("vision_feature_select_strategy", "cls", "patch, cls_patch"),
        ("image_aspect_ratio", "anyres", "square, pad"),
        ("image_aspect_ratio", ["pad"], "square, pad"),
    ],
)
def test_an_unknown_part_is_named_with_what_is_supported(
    tmp_path: Path, key: str, value: Any, supported: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=supported) as caught:
        read_changed(tmp_path, key, value)
    assert repr(value) in str(caught.value)


TEXT_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "intermediate_size")
SIZES = (
    *(f"text_config.{name}" for name in (*TEXT_SIZES, "num_attention_heads", "num_key_value_heads")),
    *(f"vision_config.{name}" for name in ("image_size", "patch_size", "hidden_size", "num_hidden_layers")),
    "text_config.max_position_embeddings",
)


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [0, -1, 10**9, 64.0, "64", True, [64], {"a": 1}, 10**400], ids=short)
def test_a_size_that_lies_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"config.json: {key}"):
        read_changed(tmp_path, key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_config.rms_norm_eps", 0),
        ("text_config.rms_norm_eps", -1e-6),
        ("text_config.rms_norm_eps", float("nan")),
        ("text_config.rms_norm_eps", "1e-6"),
        ("text_config.rope_theta", float("inf")),
        ("text_config.rope_theta", None),
        ("text_config.rope_parameters", {"rope_theta": "big"}),
        ("text_config.rope_scaling", {"type": "linear"}),
        ("text_config.rope_scaling", {"type": "linear", "factor": "2"}),
        ("text_config.rope_scaling", {"type": "linear", "factor": float("nan")}),
        ("text_config.rope_parameters", {"rope_type": "llama3", "rope_theta": 1e6, "factor": 8.0}),
        ("text_config.tie_word_embeddings", "yes"),
        ("text_config.hidden_act", 3),
        ("text_config.attention_bias", 1),
        ("text_config.eos_token_id", -1),
        ("text_config.eos_token_id", 450),
        ("text_config.eos_token_id", [2, 450]),
        ("text_config.eos_token_id", [2, "3"]),
        ("text_config.eos_token_id", []),
        ("text_config.hidden_size", 66),
        ("text_config.num_attention_heads", 3),
        ("text_config.num_key_value_heads", 3),
        ("text_config.head_dim", 17),
        ("text_config", None),
        ("text_config", [1]),
        ("vision_config", "siglip"),
        ("vision_config.num_attention_heads", 5),
        ("vision_config.patch_size", 57),
        ("vision_config.image_size", 20),  # one patch, and `patch` drops it
        ("vision_config.hidden_act", None),
        ("vision_feature_layer", 4),
        ("vision_feature_layer", -5),
        ("vision_feature_layer", -2.0),
        ("vision_feature_layer", "-2"),
        ("vision_feature_layer", None),
        ("num_queries", 0),
        ("num_resampler_layers", 10**400),
        ("tokenizer_model_max_length", "2048"),
        ("tokenizer_model_max_length", 0),
        ("tokenizer_model_max_length", 1.5),
    ],
    ids=short,
)
def test_a_value_that_cannot_be_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: "):
        read_changed(tmp_path, key, value)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("phi", "qk_layernorm", True),
        ("phi", "hidden_act", "gelu"),
        ("phi", "partial_rotary_factor", 2.0),  # more than a head
        ("phi", "partial_rotary_factor", 0.01),  # nothing of it
        ("phi", "partial_rotary_factor", 0.2),  # 3 of 16: no pairs
        ("stablelm", "use_parallel_residual", True),
        ("stablelm", "qk_layernorm", True),
        ("phi", "tie_word_embeddings", True),
        ("stablelm", "tie_word_embeddings", True),
        ("gemma", "tie_word_embeddings", False),
        ("gemma", "attention_bias", True),
        ("qwen2", "use_sliding_window", True),
        ("qwen3", "use_sliding_window", True),
        ("qwen3", "attention_bias", True),
        ("qwen3", "rope_parameters", {"rope_type": "yarn", "factor": 4.0}),
        ("qwen3", "layer_types", ["full_attention", "sliding_attention"]),
        ("qwen2", "rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("qwen2", "rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("phi3", "rope_scaling", {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}),
        ("phi3", "rope_scaling", {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}),
        ("phi3", "hidden_act", "gelu"),
        ("gemma2", "layer_types", ["full_attention", "sliding_attention"]),
        ("gemma2", "hidden_activation", "gelu"),
        ("gemma2", "attn_logit_softcapping", None),
        ("gemma2", "final_logit_softcapping", None),
        ("gemma2", "sliding_window", None),
        ("gemma2", "use_bidirectional_attention", True),
        ("gemma2", "tie_word_embeddings", False),
        ("smollm3", "no_rope_layers", [1, 1, 0, 1]),
        ("smollm3", "no_rope_layer_interval", 3),
        ("smollm3", "use_sliding_window", True),
        ("smollm3", "mlp_bias", True),
    ],
)
def test_a_variety_that_a_family_has_and_we_do_not_is_refused(
    tmp_path: Path, family: str, key: str, value: Any
) -> None:
    config = tiny_config()
    del config["text_config"]["rms_norm_eps"], config["text_config"]["tie_word_embeddings"]
    config["text_config"] |= {"model_type": family, key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"config.json: text_config\.{key}"):
        assert Checkpoint(tmp_path).config


def test_two_towers_need_the_connector_that_joins_them(tmp_path: Path) -> None:
    config = tiny_config() | {"vision_model_name_or_path2": "mof:facebook/dinov2-large"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="mlp2x_gelu"):
        assert Checkpoint(tmp_path).config


def test_two_towers_give_as_many_tokens_each(tmp_path: Path) -> None:
    config = tiny_config(patch_size=7, connector="mof_mlp")
    config["vision_model_name_or_path2"] = "mof:facebook/dinov2-large"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="63 and 16 tokens"):
        assert Checkpoint(tmp_path).config


NO_OBJECTS = (b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"a":' * 100_000, b"[" * 100_000)


@pytest.mark.parametrize(
    "content", [*NO_OBJECTS, b'{"a": 1' + b"0" * 5000 + b"}", b'{"a": "\\ud800"}'], ids=short
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config.json: (not valid JSON|expected a JSON)") as caught:
        assert Checkpoint(tmp_path).config
    assert len(str(caught.value)) < 600


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: no such file"):
        assert Checkpoint(tmp_path).config
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config.json: cannot be read"):
        assert Checkpoint(tmp_path).config
    with pytest.raises(CheckpointError, match="cannot be read"):
        assert Checkpoint(tmp_path / ("y" * 300)).config


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
KEYS = [*tiny_config(), *(f"{part}.{key}" for part in PARTS for key in tiny_config()[part])]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(key=st.sampled_from(KEYS), value=JSON)
def test_any_value_of_any_key_is_a_config_or_a_checkpoint_error(tmp_path: Path, key: str, value: Any) -> None:
    try:
        config = read_changed(tmp_path, key, value)
    except CheckpointError as error:
        assert "config.json" in str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert config.vision.num_tokens > 0


def legacy_config() -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and vision_tower/config.json of a TinyLLaVABench checkpoint."""
    config = tiny_config()
    mm = {"mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "bczhou/TinyLLaVA-1.5B-SigLIP"}
    text = config["text_config"] | mm | {"model_type": "tiny_llava", "tokenizer_model_max_length": 512}
    return text, config["vision_config"]


LEGACY_KEYS = [(part, key) for part, config in enumerate(legacy_config()) for key in config]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(key=st.sampled_from(LEGACY_KEYS), value=JSON)
def test_any_value_of_a_legacy_config_is_one_or_the_other_too(
    tmp_path: Path, key: tuple[int, str], value: Any
) -> None:
    configs = legacy_config()
    configs[key[0]][key[1]] = value
    (tmp_path / "vision_tower").mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(configs[0]))
    (tmp_path / "vision_tower" / "config.json").write_text(json.dumps(configs[1]))
    try:
        config = Checkpoint(tmp_path).config
    except CheckpointError as error:
        assert "config.json" in str(error)  # noqa: PT017 - both outcomes are right
    else:
        sides = config.vision.image_size // config.vision.patch_size
        assert config.vision.num_tokens == sides**2  # upstream keeps every token here
