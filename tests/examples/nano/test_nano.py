"""The recipe of nano from end to end, at a size that trains in seconds."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from examples.nano.distill import run_used_layers
from examples.nano.nano import train_nano
from examples.nano.recipe import Recipe, nano
from examples.nano.tokenizer import write_tokenizer
from tests.examples.nano.test_questions import RECORDS
from tinyllava_edge.benchmarks.evals.questions import read_questions
from tinyllava_edge.benchmarks.evals.scores import ask_all, score
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import OutputExistsError
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.prompt import TextTokenizer, template_named
from tinyllava_edge.runtimes.model import open_bundle


def _small_recipe() -> Recipe:
    recipe = nano()
    config = json.loads(json.dumps(dict(recipe.config)))
    config["text_config"] |= {"num_hidden_layers": 1, "vocab_size": 400}
    config["vision_config"] |= {"num_hidden_layers": 2, "intermediate_size": 192}
    return replace(
        recipe,
        config=config | {"vocab_size": 400},
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


def test_the_checkpoint_is_loaded_strictly_exported_and_answers(folder: Path, tmp_path: Path) -> None:
    model = load_model(Checkpoint(folder / "first"))
    assert model.config.template == "llama"
    assert model.config.template_reason == "stored in tinyllava_edge.json"
    assert json.loads((folder / "first" / "tinyllava_edge.json").read_text())["unlabelled_pictures"] == 1
    export_bundle(
        Checkpoint(folder / "first"), tmp_path / "bundle", ExportOptions(vision=("fp32",), language=("f32",))
    )
    questions = read_questions(folder / "train.json", folder)
    with open_bundle(tmp_path / "bundle", runtime="torch", checkpoint=folder / "first") as opened:
        answers = ask_all(opened, questions, max_tokens=4)
    assert set(score(questions, answers)) == {"name", "kind", "yesno", "all"}


def test_the_same_seed_gives_the_same_model_bit_for_bit(folder: Path) -> None:
    files = {path.name for path in (folder / "first").iterdir()}
    assert files == {path.name for path in (folder / "second").iterdir()}
    for name in files - {"training_log.jsonl", "training_curve.png"}:  # these hold seconds
        assert (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes()


def test_every_stage_leaves_its_losses_and_a_picture_of_them(folder: Path) -> None:
    log = (folder / "first" / "training_log.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in log.splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("distil", 3),
        ("pretrain", 2),
        ("finetune", 2),
    ]
    with Image.open(folder / "first" / "training_curve.png") as image:
        assert image.width > image.height


def test_frequent_words_become_single_tokens_and_any_text_survives(tmp_path: Path) -> None:
    system = template_named("llama").system
    write_tokenizer([system, "What is this? cat"] * 10, tmp_path, vocab_size=450)
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


def test_the_command_refuses_an_existing_output_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.nano", "-o", str(tmp_path), "--data", "absent.json"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f"{tmp_path}: exists already" in result.stderr
