"""transformers' own LlavaForConditionalGeneration, loaded from what we write, is the judge."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoProcessor, LlavaForConditionalGeneration
from typer.testing import CliRunner

from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.cli import app
from tinyllava_edge.errors import OutputExistsError, UnsupportedModelError
from tinyllava_edge.export.interchange.transformers_llava import check_llava, export_llava
from tinyllava_edge.image import preprocess
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import load_model

QUESTION = "What is this?"


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"aspect": "pad", "tied": True},
        {"select_strategy": "cls_patch", "feature_layer": -1},
        {"tower": "dinov2"},
    ],
    ids=["square", "pad", "every token", "DINOv2"],
)
def test_transformers_computes_our_logits_from_a_picture(sizes: dict[str, object], tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "checkpoint", **sizes)  # type: ignore[arg-type]
    export_llava(Checkpoint(path), tmp_path / "llava")
    checkpoint = Checkpoint(path)
    assets = read_assets(checkpoint)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8))
    processor = AutoProcessor.from_pretrained(tmp_path / "llava")  # type: ignore[no-untyped-call]
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt")
    pixels = preprocess(image, assets.preprocessing)
    np.testing.assert_array_equal(inputs["pixel_values"][0].numpy(), pixels)
    model: Any = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    with torch.no_grad():
        found = model.eval()(**inputs).logits[0]
    ids = assets.text_tokenizer().encode(assets.template, [(f"<image>\n{QUESTION}", None)])
    expected = load_model(checkpoint).logits(ids, torch.from_numpy(pixels)[None])
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, rtol=0, atol=1e-5)


def test_we_read_it_back_as_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    export_llava(Checkpoint(checkpoint), tmp_path / "llava")
    every = dict(load_model(Checkpoint(checkpoint)).named_parameters())
    ours = {name: value for name, value in every.items() if ".head." not in name}  # SigLIP's, for pooling
    theirs = dict(load_model(Checkpoint(tmp_path / "llava")).named_parameters())
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name][: len(value)], value, rtol=0, atol=0)


def test_what_mlx_vlm_refuses_or_overlooks_is_as_it_wants_it(checkpoint: Path, tmp_path: Path) -> None:
    """No weights that its classes have not, and the base of RoPE where older readers look."""
    export_llava(Checkpoint(checkpoint), tmp_path / "llava")
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    text = config["text_config"]
    assert text["rope_theta"] == text["rope_parameters"]["rope_theta"]
    assert config["vision_config"]["vision_use_head"] is False
    with safe_open(tmp_path / "llava" / "model.safetensors", framework="np") as file:
        assert not [name for name in file.keys() if ".head." in name]  # noqa: SIM118


@pytest.mark.parametrize(
    ("sizes", "says"),
    [({"connector": "linear"}, "the connector 'linear'"), ({"connector": "resampler"}, "'resampler'")],
)
def test_what_llava_has_not_is_refused(sizes: dict[str, str], says: str, tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "checkpoint", **sizes)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=says):
        check_llava(Checkpoint(path).config, 56)


def test_a_position_table_that_is_resized_is_refused(tmp_path: Path) -> None:
    config = Checkpoint(write_tiny_checkpoint(tmp_path / "checkpoint", tower="dinov2")).config
    check_llava(config, config.vision.image_size)
    with pytest.raises(UnsupportedModelError, match="a DINOv2 position table that is resized"):
        check_llava(config, 2 * config.vision.image_size)


def test_the_command_replaces_only_its_own_directory(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava"
    command = ["export", str(checkpoint), "-o", str(out), "--interchange", "transformers", "--json"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["vocab_size"] == 451  # 450 rows, and one for <image>
    assert CliRunner().invoke(app, [*command, "--force"]).exit_code == 0
    (out / "notes.txt").write_text("mine")
    refused = CliRunner().invoke(app, [*command, "--force"])
    assert isinstance(refused.exception, OutputExistsError)
    assert (out / "notes.txt").read_text() == "mine"
