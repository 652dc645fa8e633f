"""A checkpoint opened once: what is read and how often, and what a wrong one is told."""

import json
from pathlib import Path

import pytest

from tests.core.checkpoint.test_opened import split_into_pickles, split_into_shards
from tests.opened_files import counted_opens
from tests.tiny import tiny_config, write_tiny_checkpoint
from tinyllava_edge.checkpoint.names import bundle_path, checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, UnsupportedModelError
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.checkpoint import tensor_facts
from tinyllava_edge.model.vlm import load_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny", hidden=32, intermediate=48, layers=1)


def test_config_json_is_read_when_it_is_needed_and_once(directory: Path) -> None:
    with counted_opens(directory / "config.json") as before:
        checkpoint = Checkpoint(directory)
    with counted_opens(directory / "config.json") as opens:
        load_model(checkpoint)
        read_assets(checkpoint)
        tensor_facts(checkpoint)
        assert checkpoint.layout == "flat safetensors"
        assert len(checkpoint.sha256) == 64
        assert checkpoint.factory_config["model_type"] == "tinyllava"
    assert (before, opens) == ([0], [1])


def test_the_hash_of_nano_is_the_one_in_the_bundle_that_was_made_of_it() -> None:
    manifest = json.loads((bundle_path("nano") / "manifest.json").read_text())
    assert Checkpoint(checkpoint_path("nano")).sha256 == manifest["source"]["checkpoint_sha256"]


def test_the_template_and_the_sources_are_used(directory: Path, tmp_path: Path) -> None:
    config = tiny_config(connector="mof_mlp")
    config["vision_model_name_or_path2"] = "mof:own/dinov2"
    config["vision_config"] |= {"model_type": "clip_vision_model"}
    (directory / "config.json").write_text(json.dumps(config))
    second = {"model_type": "dinov2", "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    (tmp_path / "own" / "dinov2").mkdir(parents=True)
    (tmp_path / "own" / "dinov2" / "config.json").write_text(json.dumps(second))
    found = Checkpoint(directory, sources=tmp_path, template="gemma").config
    assert (found.template, found.template_reason) == ("gemma", "given by --template")
    assert found.second_vision is not None
    assert found.second_vision.num_hidden_layers == 2
    with pytest.raises(CheckpointError, match=r"second tower 'own/dinov2'.*Give --sources DIR"):
        assert Checkpoint(directory).config


def test_a_directory_that_is_not_there_is_named() -> None:
    absent = Checkpoint(Path("absent"))
    for value in ("layout", "weight_files", "sha256"):
        with pytest.raises(CheckpointError, match=r"^absent: no such directory. Give a checkpoint directory"):
            getattr(absent, value)
    with pytest.raises(CheckpointError, match=r"^absent/config.json: no such file. A checkpoint directory"):
        assert absent.config


def test_another_model_is_refused_by_its_type(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UnsupportedModelError, match="model_type is 'bert', expected 'tinyllava'"):
        assert Checkpoint(directory).config


@pytest.mark.parametrize("split", [split_into_shards, split_into_pickles])
def test_files_are_listed_and_one_that_is_missing_is_named(directory: Path, split: object) -> None:
    assert callable(split)
    split(directory)
    files = Checkpoint(directory).weight_files
    assert sorted(files) == sorted(p for p in directory.rglob("*") if p.suffix in (".safetensors", ".bin"))
    files[-1].unlink()
    with pytest.raises(CheckpointError, match=f"{files[-1].name}: missing|holds no weights"):
        assert Checkpoint(directory).sha256


def test_an_adapter_without_its_weights_is_named(directory: Path) -> None:
    split_into_pickles(directory)
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: missing. Download or copy"):
        assert Checkpoint(directory).sha256


def test_a_repositorys_files_are_looked_for_inside_the_sources_only(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, sources=Path("sources"))
    for name in ("own/tower", "", "/etc", "../secret", "own/../../secret", r"..\secret", "/..", "a/.."):
        inside = [folder.relative_to("sources") for folder in checkpoint.folders(name)[1:]]
        assert inside[-1] == Path()
        assert all(".." not in folder.parts for folder in inside)
    assert checkpoint.folders("own/tower")[1:3] == [Path("sources/own/tower"), Path("sources/tower")]
    assert Checkpoint(tmp_path).folders("own/tower") == [tmp_path]
