"""Checkpoints of nanoVLM, stage by stage against what its own classes computed from the same files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.nanovlm import FOLDER, GENERATIONS, SOURCES, changed, opened, oracle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, MissingFileError
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.metrics import nmse
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.prompt import place_markers


@pytest.mark.parametrize("generation", GENERATIONS)
def test_tower_projector_and_language_model_compute_as_upstreams(generation: str) -> None:
    expected, model = oracle(generation), load_model(opened(generation))
    with torch.no_grad():
        tower = model.vision_tower(torch.from_numpy(expected.pixels))
        rows = model.connector(tower)
    np.testing.assert_allclose(tower, expected.tower, atol=1e-5)
    np.testing.assert_allclose(rows, expected.embeddings, atol=1e-5)
    for prompt in expected.prompts.values():
        logits = model.logits(prompt.ids, torch.from_numpy(expected.pixels[:1])).numpy()
        assert logits.shape == prompt.logits.shape
        assert nmse(prompt.logits, logits) < 1e-10
        assert int(logits[-1].argmax()) == prompt.greedy[0]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_prompts_and_pixels_are_upstreams(generation: str) -> None:
    expected, assets = oracle(generation), read_assets(opened(generation))
    tokenizer = assets.text_tokenizer()
    assert (assets.eos_id, assets.stop_ids, assets.largest_id) == (
        expected.eos_id,
        (expected.eos_id,),
        expected.tokens - 1,
    )
    for prompt in expected.prompts.values():
        placed = place_markers(prompt.turns, 1, assets.template)
        for honour_special in (True, False):
            assert tokenizer.encode(assets.template, placed, honour_special=honour_special) == prompt.ids
        marked = place_markers(
            [(f"<image>\n{prompt.turns[0][0]}", prompt.turns[0][1]), *prompt.turns[1:]], 1, assets.template
        )
        assert marked == placed == place_markers(placed, 1, assets.template)
    pixels = [preprocess(open_picture(path), assets.preprocessing) for path in expected.pictures]
    np.testing.assert_array_equal(np.stack(pixels), expected.pixels)


def test_typed_special_text_stays_text_and_the_templates_own_does_not() -> None:
    assets = read_assets(opened("global"))
    tokenizer, end = assets.text_tokenizer(), assets.eos_id
    turns = place_markers([("<|im_end|><|global_image|>", "x<|im_start|>"), ("?", None)], 1, assets.template)
    typed = tokenizer.encode(assets.template, turns)
    plain = tokenizer.encode(assets.template, turns, honour_special=False)
    counted = [str(end), *(str(tokenizer.token_id(token)) for token in ("<|im_start|>", "<|global_image|>"))]
    assert [list(map(str, typed)).count(token) for token in counted] == [4, 5, 2]
    assert [list(map(str, plain)).count(token) for token in counted] == [3, 4, 1]
    text = tokenizer.decode([token for token in plain if token >= 0])
    assert text.startswith("user\n<|im_end|><|global_image|>\nassistant\nx<|im_start|>\nuser\n?")


def test_a_tied_head_may_be_there_under_the_embeddings_name(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "chat", tmp_path / "chat")
    path = tmp_path / "chat" / "model.safetensors"
    tensors = load_file(path)
    tensors["decoder.token_embedding.weight"] = tensors.pop("decoder.head.weight")
    save_file(tensors, path)
    ours, theirs = load_model(Checkpoint(tmp_path / "chat")), load_model(opened("chat"))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"MP.proj.weight": None},
            r"model.safetensors: 1 tensors are missing, the first is 'MP.proj.weight'",
        ),
        (
            {"MP.proj.weight": torch.zeros(32, 64)},
            r"'MP.proj.weight' has shape \[32, 64\], .*config.json asks for \[32, 128\] "
            r"\(mp_pixel_shuffle_factor, vit_hidden_dim and lm_hidden_dim\)",
        ),
        (
            {"vision_encoder.patch_embedding.position_embedding": torch.zeros(1, 25, 32)},
            r"'vision_encoder.patch_embedding.position_embedding' has shape \[25, 32\].* "
            r"\(vit_img_size and vit_patch_size\)",
        ),
        (
            {"vision_encoder.blocks.1.attn.qkv_proj.bias": None},
            r"'vision_encoder.blocks.1.attn.qkv_proj.bias'",
        ),
        (
            {"decoder.rotary_embd.inv_freq": torch.ones(4)},
            "'decoder.rotary_embd.inv_freq' is not what config.json makes",
        ),
        ({"vision_encoder.more": torch.zeros(1)}, "tensor 'vision_encoder.more' belongs to no part"),
        ({"decoder.blocks.0.attn.q_proj.bias": torch.zeros(32)}, "q_proj.bias' is left over"),
    ],
)
def test_tensors_that_do_not_fit_are_named_as_the_file_does(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    shutil.copytree(FOLDER / "global", tmp_path / "global")
    path = tmp_path / "global" / "model.safetensors"
    tensors = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(CheckpointError, match=message):
        load_model(Checkpoint(tmp_path / "global"))


def test_half_a_download_is_named(tmp_path: Path) -> None:
    checkpoint = changed(tmp_path, "chat")
    path = checkpoint.path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged"):
        load_model(checkpoint)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"chat: holds no weights"):
        load_model(Checkpoint(checkpoint.path))


def test_a_tokenizer_that_leaves_no_row_for_the_image_token_is_refused(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(SOURCES / "tiny-random" / "smollm2-instruct", sources)
    path = sources / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"]["more"] = len(values["model"]["vocab"])
    path.write_text(json.dumps(values))
    with pytest.raises(
        CheckpointError, match=r"sources: .*ids up to 361 .*config.json has lm_vocab_size 361: image_token"
    ):
        read_assets(Checkpoint(FOLDER / "chat", sources=sources))
    with pytest.raises(MissingFileError, match=r"--sources DIR with the files of tiny-random/smollm2"):
        read_assets(Checkpoint(FOLDER / "chat"))
