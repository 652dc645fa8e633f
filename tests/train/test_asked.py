"""Flags over a recipe: what of both a run gets, and from where it starts. No step is trained but one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import transformers
from typer.testing import CliRunner

from tests.core.checkpoint.test_hub import point_at
from tests.hub_server import hub_of
from tests.tiny import TOKENIZER_FOLDER, TOKENIZER_VOCAB
from tests.train.own_data import write_own_data
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.cli import app
from tinyllava_edge.errors import CheckpointError, UsageError
from tinyllava_edge.train.asked import Asked, read_asked
from tinyllava_edge.train.recipe import open_recipe

LINES = Path(__file__).parents[1] / "fixtures" / "lines"
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub with TinyLlama and SigLIP under the names that upstream's script has, of tiny sizes."""
    root = tmp_path / "root"
    llama = transformers.LlamaConfig(**SIZES, vocab_size=TOKENIZER_VOCAB)
    llm = root / "TinyLlama" / "TinyLlama-1.1B-Chat-v1.0"
    transformers.LlamaForCausalLM(llama).save_pretrained(llm)
    for path in TOKENIZER_FOLDER.iterdir():
        shutil.copy(path, llm)
    tower = root / "google" / "siglip-so400m-patch14-384"
    vision = transformers.SiglipVisionConfig(**SIZES, image_size=28, patch_size=14)
    transformers.SiglipVisionModel(vision).save_pretrained(tower)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    size = {"size": {"height": 28, "width": 28}}
    (tower / "preprocessor_config.json").write_text(json.dumps(processor | size))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with hub_of(root) as (address, requests):
        point_at(address, monkeypatch)
        yield requests


def test_stage_one_of_a_recipe_from_names_of_the_hub(hub: list[str], tmp_path: Path) -> None:
    """One step of base-pretrain; flags go before its precision and its batch."""
    data = write_own_data(tmp_path)
    records = [record for record in json.loads(data.read_text()) if "image" in record]
    data.write_text(json.dumps(records))
    line = (
        "train --recipe base-pretrain --llm TinyLlama/TinyLlama-1.1B-Chat-v1.0 --data data.json -o out --json"
    )
    # A picture of the tower has 3 tokens here.
    result = CliRunner().invoke(app, [*line.split(), "--precision", "fp32", "--batch-size", "4"])
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "--tower: google/siglip-so400m-patch14-384, of the hub" in result.stderr
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["llm_model_name_or_path"] == "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    assert raw["vision_model_name_or_path"] == "google/siglip-so400m-patch14-384"
    sidecar = json.loads((tmp_path / "out" / "tinyllava_edge.json").read_text())
    assert sidecar["recipe"] == "base-pretrain"
    assert (sidecar["training_template"], sidecar["template"]) == ("pretrain", "llama")
    assert Checkpoint(tmp_path / "out").config.tokenizer_max_length == 2048


def asked(source: Path, recipe: str, **flags: Any) -> Asked:
    return read_asked(str(source), open_recipe(recipe), flags, allow_pickle=False)


def test_flags_go_before_the_recipe_and_the_rest_is_its_own(source: Path) -> None:
    found = asked(source, "base-finetune", learning_rate=1e-4, gradient_checkpointing=False, rank=None)
    training = found.training
    assert (training.learning_rate, training.gradient_checkpointing) == (1e-4, False)
    assert (training.adam_beta2, training.group_by_modality_length, training.seed) == (0.999, True, 42)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (8, 16)
    assert {part: tuning.how for part, tuning in found.tune.items()} == {
        "connector": "full",
        "language_model": "full",
    }
    assert asked(source, "lora-parts", rank=4).lora.rank == 4
    assert asked(source, "share-tower-pretrain").tune["vision_tower"].from_layer == 12


def test_the_family_of_a_checkpoint_that_names_its_tower_is_known_by_sources() -> None:
    line = LINES / "bunny-qwen2-pad" / "model"
    found = read_asked(str(line), open_recipe("base-finetune"), {}, sources=LINES / "sources")
    assert (found.start, found.sources) == (line, LINES / "sources")
    with pytest.raises(CheckpointError, match="Give --sources"):
        read_asked(str(line), open_recipe("base-finetune"), {})


@pytest.mark.parametrize(("processes", "flags", "batch", "gathered"), [
    ("1", {}, 8, 16),
    ("4", {}, 8, 4),
    ("4", {"per_device_train_batch_size": 2}, 2, 16),
    ("1", {"global_batch_size": 4}, 4, 1),
    ("1", {"gradient_accumulation_steps": 3}, 8, 3),
])  # fmt: skip
def test_a_step_has_as_many_conversations_on_any_number_of_processes(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: str,
    flags: dict[str, int],
    batch: int,
    gathered: int,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    training = asked(source, "base-finetune", **flags).training
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (batch, gathered)


def test_what_does_not_fit_is_named_in_one_line(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for recipe, flags, said in (
        ("base-finetune", {"feature_layer": -1}, "--feature-layer is of a model from parts"),
        ("base-finetune", {"num_resampler_layers": 1}, "--connector-layers is of a model from parts"),
        ("base-finetune", {"global_batch_size": 9, "gradient_accumulation_steps": 2}, "Give one of them"),
    ):
        with pytest.raises(UsageError, match=said):
            asked(source, recipe, **flags)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match=r"128 conversations, which 3 .* --global-batch-size 120"):
        _ = asked(source, "base-finetune").training
    for recipe, said in (
        ("base-finetune", "goes on from a checkpoint: give --from"),
        ("base-pretrain", "as --llm microsoft/phi-2 or stabilityai"),
    ):
        with pytest.raises(UsageError, match=said):
            read_asked(None, open_recipe(recipe), {}, allow_pickle=False)


def test_a_recipe_for_another_family_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path
) -> None:
    """Exit code 2, one line, nothing at the output."""
    (tmp_path / "mine.yaml").write_text("extends: lora\nsummary: mine\nfamilies: {phi: {}}")
    data, recipe = write_own_data(tmp_path), tmp_path / "mine.yaml"
    line = ["train", "--recipe", recipe, "--from", source, "--data", data, "-o", tmp_path / "out"]
    result = CliRunner().invoke(app, [str(word) for word in line])
    assert isinstance(result.exception, UsageError)
    assert "is for phi, and the language model is of 'llama'" in str(result.exception)
    assert not (tmp_path / "out").exists()
