"""The recipe of nano from end to end, at a size that trains in seconds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from tests.train.test_questions import RECORDS
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import OutputExistsError, UsageError
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.prompt import TextTokenizer, template_named
from tinyllava_edge.train import recipes
from tinyllava_edge.train.cli import train
from tinyllava_edge.train.data import read_lines
from tinyllava_edge.train.distill import run_used_layers
from tinyllava_edge.train.nano import train_nano
from tinyllava_edge.train.score import answer, score
from tinyllava_edge.train.tokenizer import write_tokenizer


def _small_recipe() -> recipes.Recipe:
    recipe = recipes.nano()
    config = json.loads(json.dumps(dict(recipe.config)))
    config["text_config"] |= {"num_hidden_layers": 1, "vocab_size": 400}
    config["vision_config"] |= {"num_hidden_layers": 2, "intermediate_size": 192}
    return replace(
        recipe,
        config=config | {"vocab_size": 400},
        vocab_size=400,
        precision="fp32",
        distillation=replace(recipe.distillation, num_views=64, steps=3, batch_size=8, teacher_dimensions=2),
        stages=tuple(replace(stage, epochs=1, batch_size=2) for stage in recipe.stages),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("nano")
    for index, name in enumerate(("cat", "owl", "dog")):
        image = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(image).ellipse((10, 10, 60, 80), fill=("red", "green", "blue")[index])
        image.save(folder / f"{name}.png")
    (folder / "train.json").write_text(json.dumps(RECORDS))
    (folder / "others").mkdir()
    Image.open(folder / "owl.png").rotate(45, fillcolor="white").save(folder / "others" / "anything.png")
    for out in ("first", "second"):
        train_nano(
            folder / out,
            data=folder / "train.json",
            images=folder,
            recipe=_small_recipe(),
            seed=3,
            unlabelled=[folder / "others"],
        )
    return folder


def test_the_checkpoint_is_loaded_strictly_and_answers(folder: Path) -> None:
    model = load_model(Checkpoint(folder / "first"))
    assets = read_assets(Checkpoint(folder / "first"))
    assert model.config.template == "llama"
    assert model.config.template_reason == "stored in tinyllava_edge.json"
    assert json.loads((folder / "first" / "tinyllava_edge.json").read_text())["unlabelled_pictures"] == 1
    texts = answer(model, assets, ["<image>\nWhat is this?"] * 2, torch.zeros(2, 3, 96, 96), max_tokens=4)
    assert len(texts) == 2
    rates = score(model, assets, folder / "train.json", folder)
    assert set(rates) == {"name", "kind", "yesno", "all"}


def test_the_same_seed_gives_the_same_model_bit_for_bit(folder: Path) -> None:
    files = {path.name for path in (folder / "first").iterdir()}
    assert files == {path.name for path in (folder / "second").iterdir()}
    for name in files - {"training_log.jsonl", "training_curve.png"}:  # these hold seconds
        assert (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes()


def test_every_stage_leaves_its_losses_and_a_picture_of_them(folder: Path) -> None:
    lines = read_lines(folder / "first" / "training_log.jsonl")
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("distil", 3),
        ("pretrain", 2),
        ("finetune", 2),
    ]
    with Image.open(folder / "first" / "training_curve.png") as image:
        assert image.width > image.height


def test_frequent_words_become_single_tokens_and_any_text_survives(tmp_path: Path) -> None:
    system = template_named("llama").system
    write_tokenizer([system, "What is this? cat"] * 10, tmp_path, vocab_size=450, max_length=64)
    assets = read_tokenizer(tmp_path)
    assert (assets.unk_id, assets.bos_id, assets.eos_id) == (0, 1, 2)
    tokenizer = TextTokenizer(assets.tokenizer_json, bos_id=assets.bos_id)
    assert len(tokenizer.encode_text(system)) < 1.5 * len(system.split())  # words, punctuation
    assert tokenizer.decode(tokenizer.encode_text("Zürich: 12 km!")) == "Zürich: 12 km!"


def test_an_existing_output_is_refused_before_any_work(folder: Path) -> None:
    with pytest.raises(OutputExistsError, match="--force"):
        train_nano(folder / "first", data=Path("absent"), images=folder, recipe=_small_recipe(), seed=0)


def test_the_tower_is_taught_at_the_layer_that_the_model_reads(folder: Path) -> None:
    tower = load_model(Checkpoint(folder / "first")).vision_tower
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(tower.select(run_used_layers(tower, pixels)), tower(pixels))


def test_pictures_without_questions_are_refused_where_the_users_own_data_are_trained_on(
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match="--pictures is for `train nano`"):
        train(out=tmp_path / "out", data=tmp_path / "my.json", source="nano", pictures=[tmp_path])
