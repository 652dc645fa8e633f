"""Checkpoints as they lie about: each kind is read, or named with the line that mends it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.layouts import write_weights
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.layouts import ADAPTER, FLAT_PICKLE, SHARDED_PICKLES
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, MissingFileError, UnsupportedModelError
from tinyllava_edge.model.vlm import load_model

MODULE = "language_model.model.layers.0.self_attn.q_proj"
ADAPTER_CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "tiny"
    return write_tiny_checkpoint(folder, hidden=32, intermediate=48, layers=1)


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def take_weights(folder: Path) -> State:
    """Its tensors, whose file is then gone."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return state


def write_adapter(folder: Path, seed: int = 0) -> State:
    """An adapter as PEFT saves it, on one module."""
    generator = torch.Generator().manual_seed(seed)
    sides = {
        f"base_model.model.{MODULE}.lora_A.weight": torch.randn((2, 32), generator=generator),
        f"base_model.model.{MODULE}.lora_B.weight": torch.randn((32, 2), generator=generator),
    }
    save_file(sides, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER_CONFIG))
    return sides


def adapter_alone(folder: Path) -> Path:
    """A trainer's checkpoint-N: config.json, tokenizer, adapter, and no base."""
    take_weights(folder)
    write_adapter(folder)
    return folder


def merged_by_peft(model: torch.nn.Module, *adapters: Path) -> State:
    """What PEFT makes of a model and adapters, one after the other."""
    from peft import PeftModel

    whole: Any = model
    whole.generation_config = None
    for adapter in adapters:
        whole = PeftModel.from_pretrained(whole, str(adapter)).merge_and_unload()
    found: State = whole.state_dict()
    return found


def assert_equal(found: torch.nn.Module, expected: State) -> None:
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


@pytest.mark.parametrize("is_sharded", [False, True])
def test_pickles_of_a_whole_model_are_read_when_they_are_allowed(
    checkpoint: Path, whole: Path, is_sharded: bool
) -> None:
    state = take_weights(checkpoint)
    names = {key: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, key in enumerate(sorted(state))}
    if is_sharded:
        for name in set(names.values()):
            torch.save({key: state[key] for key in state if names[key] == name}, checkpoint / name)
        (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    else:
        torch.save(state, checkpoint / "pytorch_model.bin")
    opened = Checkpoint(checkpoint, allow_pickle=True)
    assert opened.layout == (SHARDED_PICKLES if is_sharded else FLAT_PICKLE)
    assert_equal(load_model(opened), load_model(Checkpoint(whole)).state_dict())
    with pytest.raises(MissingFileError, match=r"pytorch_model.*\.bin: is a pickle.*--allow-pickle"):
        load_model(Checkpoint(checkpoint))


def test_an_index_of_pickles_names_pickles_alone(checkpoint: Path) -> None:
    take_weights(checkpoint)
    index = {"weight_map": {"a": "model.safetensors"}}
    (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index.json: a is in 'model.safetensors'; a shard is a .bin"):
        assert Checkpoint(checkpoint).weight_files


def test_an_adapter_alone_is_named_with_its_base_and_the_line_that_merges_both(checkpoint: Path) -> None:
    adapter_alone(checkpoint)
    for value in ("layout", "weight_files", "sha256"):
        with pytest.raises(MissingFileError, match=r"adapter_model.safetensors: a LoRA adapter") as caught:
            getattr(Checkpoint(checkpoint), value)
        assert "'tiny-random/llama'" in str(caught.value)
        assert f"tinyllava-edge export {checkpoint} --sources BASE -o OUTPUT" in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("has_config", [True, False])
def test_an_adapter_alone_is_merged_into_the_base_in_sources(
    checkpoint: Path, whole: Path, suffix: str, has_config: bool
) -> None:
    adapter_alone(checkpoint)
    expected = merged_by_peft(wrapped(load_model(Checkpoint(whole))), checkpoint)
    if suffix == ".bin":
        torch.save(load_file(checkpoint / "adapter_model.safetensors"), checkpoint / "adapter_model.bin")
        (checkpoint / "adapter_model.safetensors").unlink()
    if not has_config:
        (checkpoint / "config.json").unlink()
    opened = Checkpoint(checkpoint, sources=whole, allow_pickle=suffix == ".bin")
    assert opened.layout == ADAPTER
    assert opened.sha256 != Checkpoint(whole).sha256
    assert_equal(wrapped(load_model(opened)), expected)
    if suffix == ".bin":
        with pytest.raises(MissingFileError, match=r"adapter_model.bin: is a pickle"):
            load_model(Checkpoint(checkpoint, sources=whole))


class Wrapped(torch.nn.Module):
    """A model under the names that upstream's code gives its parts, which PEFT's keys have."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.language_model = model.language_model
        self.config = {"model_type": "tinyllava"}


def wrapped(model: Any) -> torch.nn.Module:
    return Wrapped(model)


def test_the_base_is_found_under_the_end_of_the_trainers_path(checkpoint: Path, whole: Path) -> None:
    adapter_alone(checkpoint)
    config = ADAPTER_CONFIG | {"base_model_name_or_path": "/home/trainer/runs/pretrained"}
    (checkpoint / "adapter_config.json").write_text(json.dumps(config))
    shutil.copytree(whole, checkpoint.parent / "sources/pretrained")
    language = shutil.copytree(whole, checkpoint.parent / "sources/runs/pretrained")
    (language / "config.json").write_text('{"model_type": "llama"}')  # a language model is no base
    opened = Checkpoint(checkpoint, sources=checkpoint.parent / "sources")
    assert opened.base is not None
    assert opened.base.path == checkpoint.parent / "sources/pretrained"


def test_an_adapter_on_an_adapter_is_applied_in_order(checkpoint: Path, whole: Path) -> None:
    """The first over three sub-directories, the second with the first one's directory as its base."""
    base, second = checkpoint.parent / "base", checkpoint.parent / "second"
    shutil.copytree(whole, base)
    write_weights(base, load_model(Checkpoint(whole)), "folders", torch.float32, 450)
    (base / "model.safetensors").unlink()
    write_adapter(base, seed=1)
    second.mkdir()
    write_adapter(second, seed=2)
    plain = wrapped(load_model(Checkpoint(whole)))
    expected = merged_by_peft(plain, base, second)
    assert_equal(wrapped(load_model(Checkpoint(second, sources=base, allow_pickle=True))), expected)


@pytest.mark.parametrize("is_flat", [True, False])
def test_an_adapter_on_an_unmerged_adapter_is_refused_with_what_it_is(
    checkpoint: Path, is_flat: bool
) -> None:
    model = load_model(Checkpoint(checkpoint))
    state = take_weights(checkpoint)
    if is_flat:
        state[f"{MODULE}.base_layer.weight"] = state.pop(f"{MODULE}.weight")
        save_file(state, checkpoint / "model.safetensors")
        path, name = checkpoint / "model.safetensors", f"{MODULE}.base_layer.weight"
    else:
        write_weights(checkpoint, model, "lora", torch.float32, 450)
        path = checkpoint / "language_model/pytorch_model.bin"
        name = f"{MODULE}.lora_A.default.weight"
        first = {name.removeprefix("language_model."): torch.ones(2, 32)}
        torch.save(torch.load(path, weights_only=True) | first, path)
    with pytest.raises(UnsupportedModelError, match="LoRA adapter that was not merged") as caught:
        load_model(Checkpoint(checkpoint, allow_pickle=True))
    assert str(path) in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ('parser.add_argument("output_file")', "python zero_to_fp32.py . pytorch_model.bin"),
        ('parser.add_argument("output_dir")', "python zero_to_fp32.py . . --safe_serialization"),
        (None, "python -m deepspeed.utils.zero_to_fp32 . . --safe_serialization"),
    ],
)
def test_zero_shards_are_named_with_the_line_that_joins_them(
    checkpoint: Path, script: str | None, line: str
) -> None:
    take_weights(checkpoint)
    (checkpoint / "global_step4").mkdir()
    (checkpoint / "global_step4/mp_rank_00_model_states.pt").write_bytes(b"PK")
    (checkpoint / "latest").write_text("global_step4")
    if script:
        (checkpoint / "zero_to_fp32.py").write_text(script)
    with pytest.raises(MissingFileError, match=r"ZeRO shards of DeepSpeed \(global_step4\)") as caught:
        assert Checkpoint(checkpoint).layout
    assert line in str(caught.value)


def test_what_a_run_of_an_adapter_leaves_under_zero_is_named(checkpoint: Path) -> None:
    take_weights(checkpoint)
    (checkpoint / "adapter_config.json").write_text(json.dumps(ADAPTER_CONFIG))
    with pytest.raises(MissingFileError, match=r"adapter_model\.safetensors: missing, beside adapter_config"):
        assert Checkpoint(checkpoint).layout
    for step in ("global_step9", "global_step10"):
        (checkpoint / step).mkdir()
    with pytest.raises(MissingFileError, match=r"ZeRO shards of DeepSpeed \(global_step10\)"):
        assert Checkpoint(checkpoint).layout


def test_weights_that_zero_3_did_not_gather_are_named(checkpoint: Path) -> None:
    state = {name: torch.empty(0) for name in take_weights(checkpoint)}
    save_file(state, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*shape \[0\].* run zero_to_fp32\.py"):
        load_model(Checkpoint(checkpoint))


def without_connector(folder: Path) -> str:
    write_weights(folder, load_model(Checkpoint(folder)), "folders", torch.float32, 450)
    take_weights(folder)
    (folder / "connector/pytorch_model.bin").unlink()
    return r"connector/pytorch_model\.bin: missing"


def without_index(folder: Path) -> str:
    save_file(take_weights(folder), folder / "model-00001-of-00002.safetensors")
    return r"model\.safetensors\.index\.json: missing, which lists the shards"


def in_steps(folder: Path) -> str:
    take_weights(folder)
    for step in (90, 100):
        (folder / f"checkpoint-{step}").mkdir()
    return r"holds no weights itself. Give one of the run's steps, as .*/checkpoint-100\."


@pytest.mark.parametrize("spoil", [without_connector, without_index, in_steps])
def test_what_is_missing_is_named(checkpoint: Path, spoil: Callable[[Path], str]) -> None:
    expected = spoil(checkpoint)
    with pytest.raises(MissingFileError, match=expected):
        assert Checkpoint(checkpoint).weight_files


def test_a_pointer_of_git_lfs_is_named(checkpoint: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (checkpoint / "model.safetensors").write_text(text)
    with pytest.raises(CheckpointError, match=r"model.safetensors: a pointer of Git LFS.*git lfs pull"):
        load_model(Checkpoint(checkpoint))


def change_size(folder: Path, part: str, key: str, value: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part][key] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_a_projector_of_another_width_is_named(checkpoint: Path) -> None:
    state = take_weights(checkpoint)
    key = "connector._connector.0.weight"
    save_file(state | {key: torch.ones(32, 40)}, checkpoint / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: tensor 'connector.0.weight' has"
    ) as caught:
        load_model(Checkpoint(checkpoint))
    assert "config.json asks for [32, 48] (connector_type, vision_config.hidden_size" in str(caught.value)


def test_a_tower_whose_size_does_not_fit_its_positions_is_named(checkpoint: Path) -> None:
    change_size(checkpoint, "vision_config", "image_size", 70)
    with pytest.raises(CheckpointError, match=r"position_embedding.weight' has shape \[16, 48\]") as caught:
        load_model(Checkpoint(checkpoint))
    assert "config.json asks for [25, 48] (vision_config.image_size and patch_size)" in str(caught.value)
