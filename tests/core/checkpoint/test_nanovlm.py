"""nanoVLM's config.json: what is taken from it, and what is refused by name."""

from pathlib import Path
from typing import Any

import pytest

from tests.nanovlm import FOLDER, GENERATIONS, changed, opened
from tinyllava_edge.checkpoint.headers import read_headers
from tinyllava_edge.checkpoint.hub import named_repositories
from tinyllava_edge.checkpoint.layouts import NANOVLM
from tinyllava_edge.checkpoint.nanovlm import stored_name
from tinyllava_edge.errors import CheckpointError, UnsupportedModelError


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_is_read(generation: str) -> None:
    checkpoint = opened(generation)
    config = checkpoint.config
    assert checkpoint.layout == NANOVLM
    assert config.architectures == {
        "vision_tower": "siglip_vision_model",
        "connector": "pixel_shuffle",
        "language_model": "llama",
    }
    assert config.num_picture_tokens(config.vision.image_size) == 4
    assert config.language.tie_word_embeddings is (generation != "tokens")
    wanted = {"prefix": "question", "tokens": "question", "chat": "chat"}.get(
        generation, f"chat_{generation}"
    )
    assert config.template == f"nanovlm_{wanted}"


def test_headers_have_the_parts_of_a_fused_tensor() -> None:
    headers = read_headers(opened("chat"))
    layer = "vision_tower.vision_model.encoder.layers.1.self_attn"
    assert {headers[f"{layer}.{each}_proj.weight"].shape for each in "qkv"} == {(32, 32)}
    assert stored_name(f"{layer}.k_proj.bias") == "vision_encoder.blocks.1.attn.qkv_proj.bias"
    assert "language_model.model.embed_tokens.weight" in headers  # of a tied pair the file has the head


@pytest.mark.parametrize(
    ("generation", "key", "value"),
    [
        ("global", "max_img_size", 2048),
        ("global", "max_img_size", 28),
        ("global", "vit_cls_flag", True),
        ("chat", "lm_use_tokens", True),
        ("chat", "lm_attn_scaling", 0.5),
        ("chat", "lm_model_type", "Qwen/Qwen2-0.5B"),
        ("chat", "lm_chat_template", "{{ messages[0]['content'] }}"),
        ("row", "lm_chat_template", None),
        ("prefix", "lm_rope_factor", 40.0),  # of a few days in May 2025
        ("chat", "splitted_image_size", 384),
    ],
)
def test_what_is_computed_otherwise_is_refused_by_key_and_value(
    tmp_path: Path, generation: str, key: str, value: Any
) -> None:
    with pytest.raises(
        UnsupportedModelError, match=rf"config.json: {key}\b.*{'None' if value is None else ''}"
    ):
        _ = changed(tmp_path, generation, **{key: value}).config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vit_img_size": 84}, "max_img_size = 56 with vit_img_size = 84"),
        ({"vit_img_size": 84, "max_img_size": 84}, "mp_image_token_length is 4, but vit_img_size 84"),
        ({"mp_pixel_shuffle_factor": 3}, "mp_pixel_shuffle_factor 3 does not divide the 4 x 4 patches"),
        ({"mp_image_token_length": 64}, "mp_image_token_length is 64"),
        ({"vit_n_heads": 5}, "vit_hidden_dim 32 is no multiple of vit_n_heads 5"),
        ({"lm_hidden_dim": 12}, "lm_hidden_dim 12 and lm_n_heads 4 give heads of an odd size"),
        ({"lm_n_kv_heads": 3}, "lm_n_heads 4 is no multiple of lm_n_kv_heads 3"),
        ({"lm_n_blocks": None}, "lm_n_blocks is missing"),
        ({"lm_vocab_size": -1}, "lm_vocab_size = -1 is not a possible value"),
        ({"lm_rms_eps": "small"}, "lm_rms_eps = 'small' is not a possible value"),
        ({"lm_tie_weights": 1}, "lm_tie_weights = 1 is not a possible value"),
        ({"vlm_extra_tokens": {"r1c1": "<row_1_col_1>"}}, "vlm_extra_tokens has no image_token"),
        (
            {"vlm_extra_tokens": {"image_token": "<|image|>"}},
            "vlm_extra_tokens has neither global_image_token",
        ),
        ({"vlm_extra_tokens": ["<|image|>"]}, "vlm_extra_tokens is"),
        (
            {"vlm_extra_tokens": {"image_token": "<|image|>", "global_image_token": "<|all|>"}},
            "vlm_extra_tokens.global_image_token = '<|all|>'",
        ),
    ],
)
def test_values_that_do_not_fit_are_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError), match=rf"config.json: {message}"):
        _ = changed(tmp_path, "global", **values).config


def test_the_hub_is_asked_for_the_tokenizer_alone() -> None:
    assert named_repositories(FOLDER / "chat") == ["tiny-random/smollm2-instruct"]


def test_the_fixtures_are_small() -> None:
    for path in FOLDER.iterdir():
        if path.is_dir():
            assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 1_500_000
