"""A parameter that is in a checkpoint twice: equal ones pass, different ones are refused, both named."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden import golden_checkpoint
from tests.integration.layouts import write_weights
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.streaming import stream_model
from tinyllava_edge.model.vlm import load_model

NORM = "language_model.model.norm.weight"
TOWER = "vision_tower._vision_tower.vision_model.post_layernorm.weight"
Copies = Callable[[Path, float], tuple[str, str]]


def tiny(folder: Path, layout: str = "flat") -> Path:
    path = write_tiny_checkpoint(folder, hidden=32, intermediate=48, layers=1)
    if layout != "flat":
        model = load_model(Checkpoint(path))
        (path / "model.safetensors").unlink()
        write_weights(path, model, layout, torch.float32, 450)
    return path


def stale_flat_file(folder: Path, change: float) -> tuple[str, str]:
    """`model.safetensors` beside an index and its shards."""
    state = load_file(tiny(folder) / "model.safetensors")
    write_weights(folder, load_model(Checkpoint(folder)), "sharded", torch.float32, 450)
    save_file(state | {NORM: state[NORM] + change}, folder / "model.safetensors")
    return "model.safetensors", "of-00003.safetensors"


def unlisted_shard(folder: Path, change: float) -> tuple[str, str]:
    state = load_file(tiny(folder) / "model.safetensors")
    tiny_path = folder / "model-00004-of-00004.safetensors"
    save_file({NORM: state[NORM] + change}, tiny_path)
    return "model.safetensors", tiny_path.name


def tower_beside(folder: Path, change: float) -> tuple[str, str]:
    value = load_file(tiny(folder) / "model.safetensors")[TOWER]
    (folder / "vision_tower").mkdir()
    torch.save(
        {TOWER.removeprefix("vision_tower._vision_tower."): value + change},
        folder / "vision_tower/pytorch_model.bin",
    )
    return "model.safetensors", "vision_tower/pytorch_model.bin"


def pickle_beside(folder: Path, change: float) -> tuple[str, str]:
    state = load_file(tiny(folder) / "model.safetensors")
    torch.save(state | {NORM: state[NORM] + change}, folder / "pytorch_model.bin")
    return "model.safetensors", "pytorch_model.bin"


def base_layer(folder: Path, change: float) -> tuple[str, str]:
    path = tiny(folder, "lora") / "language_model/pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    key = "model.layers.0.self_attn.q_proj.base_layer.weight"
    plain = key.replace(".base_layer", "")
    torch.save(state | {plain: state[key] + change}, path)
    return key, plain


def two_wrappers(folder: Path, change: float) -> tuple[str, str]:
    path = tiny(folder, "folders") / "connector/pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"0.bias": state["_connector.0.bias"] + change}, path)
    return "_connector.0.bias", "'0.bias'"


def flat_beside_folders(folder: Path, change: float) -> tuple[str, str]:
    state = load_file(tiny(folder) / "model.safetensors")
    write_weights(folder, load_model(Checkpoint(folder)), "folders", torch.float32, 450)
    save_file(state | {NORM: state[NORM] + change}, folder / "model.safetensors")
    return "language_model/pytorch_model.bin", "model.safetensors"


SAID: list[Copies] = [stale_flat_file, unlisted_shard, pickle_beside]
REFUSED: list[Copies] = [tower_beside, base_layer, two_wrappers, flat_beside_folders]
LOADS = (load_model, lambda opened: stream_model(opened, opened.path.parent))


@pytest.mark.parametrize("copies", [*SAID, *REFUSED], ids=lambda kind: kind.__name__)
def test_equal_ones_pass(copies: Copies, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copies(tmp_path / "equal", 0.0)
    load_model(Checkpoint(tmp_path / "equal", allow_pickle=True))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("copies", REFUSED, ids=lambda kind: kind.__name__)
def test_different_ones_are_refused(copies: Copies, tmp_path: Path) -> None:
    places = copies(tmp_path / "other", 0.125)
    checkpoint = Checkpoint(tmp_path / "other", allow_pickle=True)
    for load in LOADS:
        with pytest.raises(CheckpointError, match="are the same parameter, but differ") as caught:
            load(checkpoint)
        assert all(place in str(caught.value) for place in places)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("copies", SAID, ids=lambda kind: kind.__name__)
def test_the_file_that_transformers_takes_first_is_read_and_named(
    copies: Copies, load: Callable[[Checkpoint], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read, unread = copies(tmp_path / "other", 0.125)
    for place in (*tmp_path.glob(f"other/*{read}"), *tmp_path.glob("other/*.index.json")):
        os.utime(place, (1, 1))
    load(Checkpoint(tmp_path / "other", allow_pickle=True))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("; it is the newer one")
    assert f"{read} is read, which transformers takes first" in line
    assert f"{unread} is not, and differs: in '{NORM}'" in line


@pytest.mark.parametrize("copies", [tower_beside, pickle_beside], ids=lambda kind: kind.__name__)
def test_a_pickle_that_is_not_read_is_named(
    copies: Copies, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read, unread = copies(tmp_path / "checkpoint", 0.125)
    load_model(Checkpoint(tmp_path / "checkpoint"))
    said = capsys.readouterr().err
    assert f"{unread}: a pickle of weights, not read" in said
    assert read in said


def test_one_value_under_two_prefixes_of_a_file(tmp_path: Path) -> None:
    """What transformers writes before and since 4.52, in one file."""
    folder = tiny(tmp_path / "llava")
    state = load_file(folder / "model.safetensors")
    state = {
        key.replace("vision_tower._vision_tower.", "vision_tower.")
        .replace("connector._connector.0.", "multi_modal_projector.linear_1.")
        .replace("connector._connector.2.", "multi_modal_projector.linear_2."): value
        for key, value in state.items()
    }
    config = json.loads((folder / "config.json").read_text())
    names = ("text_config", "vision_config", "vision_feature_layer")
    llava = {name: config[name] for name in names} | {"model_type": "llava", "image_token_index": 7}
    (folder / "config.json").write_text(json.dumps(llava | {"vision_feature_select_strategy": "default"}))
    newer = "model.language_model.norm.weight"
    save_file(state | {newer: state[NORM].clone()}, folder / "model.safetensors")
    load_model(Checkpoint(folder))
    save_file(state | {newer: state[NORM] + 1}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="are the same parameter, but differ") as caught:
        load_model(Checkpoint(folder))
    assert newer in str(caught.value)
    assert f"'{NORM}'" in str(caught.value)


def test_the_tower_of_a_legacy_checkpoint_is_compared(tmp_path: Path) -> None:
    """Its own code takes the tower from the directory, and leaves the one in the main file."""
    source = golden_checkpoint("legacy-bench-1.5b-llama-siglip") / "model"
    folder = tmp_path / "legacy"
    (folder / "vision_tower").mkdir(parents=True)
    for path in source.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(source)).write_bytes(path.read_bytes())
    load_model(Checkpoint(folder, allow_pickle=True))
    tower = folder / "vision_tower/pytorch_model.bin"
    state = torch.load(tower, weights_only=True)
    name = "vision_model.embeddings.patch_embedding.bias"
    torch.save(state | {name: state[name] + 1}, tower)
    with pytest.raises(
        CheckpointError, match=r"model.safetensors and .*vision_tower/pytorch_model.bin are the"
    ):
        load_model(Checkpoint(folder, allow_pickle=True))


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", torch.tensor([1, 0.1, 0.01, 0.001])),
        ("vision_tower._vision_tower.vision_model.embeddings.position_ids", torch.arange(16)[None]),
    ],
)
def test_a_buffer_is_what_is_computed(tmp_path: Path, name: str, right: torch.Tensor) -> None:
    """inv_freq of heads of 8 values and theta 10000: 10000 ** -(0, 2, 4, 6) / 8."""
    path = tiny(tmp_path / "checkpoint") / "model.safetensors"
    state = load_file(path)
    for value in (right, right.to(torch.bfloat16)):
        save_file(state | {name: value}, path)
        load_model(Checkpoint(path.parent))
    for wrong in (right * 2, right + 1, right[..., :-1].contiguous() * 1.5):
        save_file(state | {name: wrong}, path)
        with pytest.raises(CheckpointError, match=rf"'{name.replace('_vision_tower.', '')}' is not what"):
            load_model(Checkpoint(path.parent))


def test_an_adapter_beside_what_is_no_base_is_refused(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "checkpoint")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    with pytest.raises(CheckpointError, match=r"adapter_config.json: an adapter, but .*model.safetensors"):
        load_model(Checkpoint(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("name", [NORM, TOWER])
def test_what_float32_cannot_hold_is_named_at_its_source(tmp_path: Path, name: str, value: float) -> None:
    path = tiny(tmp_path / "checkpoint") / "model.safetensors"
    state = {key: tensor.double() for key, tensor in load_file(path).items()}
    state[name][0] = value
    save_file(state, path)
    with pytest.raises(CheckpointError, match=rf"{name.split('.')[-2]}.weight' holds NaN or infinity"):
        load_model(Checkpoint(path.parent))
