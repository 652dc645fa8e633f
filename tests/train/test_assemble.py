"""Towers and language models in transformers' own files -> a checkpoint, and stage 1 on it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.tiny import TOKENIZER_FOLDER, TOKENIZER_VOCAB
from tests.train.own_data import write_own_data
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.checkpoint import iter_tensors
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.train.assemble import assemble
from tinyllava_edge.train.cli import train

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION = {**SIZES, "image_size": 28, "patch_size": 14}


def _whole_siglip() -> Any:
    config = transformers.SiglipConfig(
        text_config={**SIZES, "vocab_size": 99, "projection_size": 32}, vision_config=VISION
    )
    return transformers.SiglipModel(config)


def _siglip_tower() -> Any:
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))


def _whole_clip() -> Any:
    text = {**SIZES, "vocab_size": 99, "projection_dim": 32}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=32)
    return transformers.CLIPModel(config)


def _dinov2() -> Any:
    sizes = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    return transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm") / "tiny-llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, vocab_size=TOKENIZER_VOCAB, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for path in TOKENIZER_FOLDER.iterdir():
        shutil.copy(path, folder)
    return folder


def _save_tower(build: Callable[[], Any], folder: Path) -> Any:
    torch.manual_seed(1)
    model = build().eval()
    model.save_pretrained(folder)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(processor | {"size": {"height": 28, "width": 28}})
    )
    return model


@pytest.mark.parametrize("build", [_whole_siglip, _siglip_tower, _whole_clip, _dinov2])
def test_an_assembled_checkpoint_computes_what_its_parts_compute(
    build: Callable[[], Any], llm: Path, tmp_path: Path
) -> None:
    """The oracle is transformers, on the models that were saved."""
    tower = _save_tower(build, tmp_path / "tower")
    assemble(tmp_path / "out", tower=tmp_path / "tower", connector="linear", language_model=llm, seed=0)
    model = load_model(Checkpoint(tmp_path / "out"))
    pixels = torch.rand(2, 3, 28, 28) * 2 - 1
    with torch.no_grad():
        half = getattr(tower, "vision_model", tower)
        hidden = half(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(model.vision_tower(pixels), hidden[:, 1:])
        language: Any = transformers.LlamaForCausalLM.from_pretrained(llm)
        language.eval()
        ids = torch.tensor([[1, 17, 23, 5]])
        torch.testing.assert_close(model.logits(ids[0].tolist()), language(ids).logits[0])


def test_stage_one_from_parts_trains_the_connector_and_leaves_nothing_else_behind(
    llm: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "out", write_own_data(tmp_path)
    data.write_text(json.dumps([record for record in json.loads(data.read_text()) if "image" in record]))
    _save_tower(_whole_siglip, tmp_path / "tower")
    names = {path.name for path in tmp_path.iterdir()}
    train(
        out=out,
        data=data,
        tower=tmp_path / "tower",
        llm=llm,
        tune="connector",
        template="pretrain",
        precision="fp32",
    )
    assert {path.name for path in tmp_path.iterdir()} == names | {"out"}
    assemble(tmp_path / "start", tower=tmp_path / "tower", connector="mlp2x_gelu", language_model=llm, seed=0)
    start = dict(iter_tensors(Checkpoint(tmp_path / "start")))
    changed = {name for name, tensor in iter_tensors(Checkpoint(out)) if not torch.equal(tensor, start[name])}
    assert changed == {f"connector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    sidecar = json.loads((out / "tinyllava_edge.json").read_text())
    assert sidecar["source"] == "tower + mlp2x_gelu + tiny-llama"
    assert sidecar["source_sha256"] == Checkpoint(tmp_path / "start").sha256  # so it can be resumed
    assert sidecar["template"] == "llama"


def _assemble(folder: Path, connector: str) -> None:
    parts = {"tower": folder / "tower", "language_model": folder / "llm"}
    assemble(folder / "out", connector=connector, seed=0, **parts)


def test_a_folder_without_weights_is_named(llm: Path, tmp_path: Path) -> None:
    shutil.copytree(llm, tmp_path / "llm")
    (tmp_path / "llm" / "model.safetensors").unlink()
    _save_tower(_siglip_tower, tmp_path / "tower")
    with pytest.raises(CheckpointError, match="llm: holds no weights"):
        _assemble(tmp_path, "linear")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("part", "changes", "said"), [
    ("tower", {"model_type": "siglip", "vision_config": None}, "vision_config is missing"),
    ("tower", {"model_type": "clip", "vision_config": [1]}, "vision_config is missing"),
    ("llm", {"max_position_embeddings": "many"}, "max_position_embeddings"),
    ("llm", {"max_position_embeddings": 0}, "max_position_embeddings"),
])  # fmt: skip
def test_a_part_with_an_impossible_config_is_named(
    llm: Path, tmp_path: Path, part: str, changes: dict[str, Any], said: str
) -> None:
    shutil.copytree(llm, tmp_path / "llm")
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    path = tmp_path / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=said):
        _assemble(tmp_path, "linear")


def test_a_width_that_the_weights_do_not_have_is_named(llm: Path, tmp_path: Path) -> None:
    """The connector would be as wide: gigabytes, for a digit too many."""
    shutil.copytree(llm, tmp_path / "llm")
    _save_tower(_siglip_tower, tmp_path / "tower")
    path = tmp_path / "llm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 64_000}))
    with pytest.raises(CheckpointError, match="says a width of 64000, its embedding has"):
        _assemble(tmp_path, "mlp2x_gelu")
