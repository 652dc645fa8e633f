"""What trainings leave behind: interrupted ones, LoRA, and QLoRA in eight bits, whole and damaged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.layouts import write_weights
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.layouts import FLAT, LORA
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, UnsupportedModelError
from tinyllava_edge.export.pipeline import export_bundle
from tinyllava_edge.model.vlm import load_model, upstream_state_dict

QUERY = "base_model.model.language_model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(
        tmp_path_factory.mktemp("flat") / "tiny", hidden=32, intermediate=48, layers=1
    )


@pytest.fixture
def lora(flat: Path, tmp_path: Path) -> Path:
    """The same model with a LoRA adapter over three sub-directories."""
    checkpoint = Path(shutil.copytree(flat, tmp_path / "lora"))
    (checkpoint / "model.safetensors").unlink()
    write_weights(checkpoint, load_model(Checkpoint(flat)), "lora", torch.float32, 450)
    return checkpoint


def change_adapter(checkpoint: Path, change: Any) -> None:
    path = checkpoint / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def change_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_interrupted_training_is_read_as_it_stands(flat: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(flat, tmp_path / "checkpoint-1500"))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (checkpoint / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")  # a pickle nobody may open
    (checkpoint / "trainer_state.json").write_text('{"global_step": 1500}')
    (checkpoint / "latest").write_text("global_step1500")
    assert Checkpoint(checkpoint).layout == FLAT
    found, expected = (
        upstream_state_dict(load_model(Checkpoint(checkpoint))),
        upstream_state_dict(load_model(Checkpoint(flat))),
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_adapter_is_told_by_its_content_not_its_path(lora: Path) -> None:
    assert Checkpoint(lora.rename(lora.parent / "plain")).layout == LORA


@pytest.mark.parametrize("part", ["language_model", "connector"])
def test_a_qlora_base_in_eight_bits_is_refused_with_the_reason(lora: Path, part: str, tmp_path: Path) -> None:
    path = lora / part / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    name = next(name for name in state if state[name].ndim == 2 and "embed" not in name)
    torch.save(state | {name: torch.zeros_like(state[name], dtype=torch.int8)}, path)
    with pytest.raises(UnsupportedModelError, match=r"int8 without its scale, as a QLoRA run"):
        export_bundle(Checkpoint(lora, allow_pickle=True), tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora"]


def test_eight_bits_are_refused_without_an_adapter_too(flat: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(flat, tmp_path / "tiny"))
    state = load_file(checkpoint / "model.safetensors")
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    save_file(state | {name: state[name].to(torch.int8)}, checkpoint / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"up_proj.weight' is int8 without its scale"):
        load_model(Checkpoint(checkpoint))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop(f"{QUERY}.lora_B.weight"), "only one of lora_A and lora_B"),
        (lambda state: state.update({f"{QUERY}.bias": torch.zeros(2)}), "q_proj.bias' is not a LoRA matrix"),
        (
            lambda state: state.update(
                {f"{QUERY.replace('.0.', '.7.')}.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
            ),
            "layers.7.self_attn.q_proj' is not a module of the base model",
        ),
        (
            lambda state: state.update(
                {f"{QUERY}.lora_B.weight": state[f"{QUERY}.lora_B.weight"][1:].clone()}
            ),
            "has shape [31, 32], the base [32, 32]",
        ),
    ],
)
def test_a_damaged_adapter_is_named(lora: Path, change: Any, named: str) -> None:
    change_adapter(lora, change)
    with pytest.raises(CheckpointError) as caught:
        load_model(Checkpoint(lora, allow_pickle=True))
    assert named in str(caught.value)


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}])
def test_another_kind_of_adapter_is_refused(lora: Path, changes: dict[str, Any]) -> None:
    change_config(lora, **changes)
    with pytest.raises(UnsupportedModelError, match=rf"adapter_config.json: {next(iter(changes))} "):
        load_model(Checkpoint(lora, allow_pickle=True))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora_alpha": "x"}, r"adapter_config.json: lora_alpha 'x' with alpha_pattern"),
        ({"lora_alpha": None}, r"adapter_config.json: lora_alpha None"),
        ({"alpha_pattern": {"(": 8}}, r"adapter_config.json: lora_alpha .* with alpha_pattern {'\(': 8}"),
        ({"r": 0}, r"adapter_config.json: r 0 with rank_pattern"),
        ({"r": 450}, r"lora_A \[\d, 32\] and lora_B \[32, \d\] of .*proj' are not of rank 450"),
        ({"rank_pattern": {"q_proj": 450}}, r"q_proj' are not of rank 450"),
    ],
)
def test_an_adapter_whose_config_lies_is_named(lora: Path, changes: dict[str, Any], named: str) -> None:
    change_config(lora, **changes)
    with pytest.raises(CheckpointError, match=named):
        load_model(Checkpoint(lora, allow_pickle=True))


def test_a_missing_adapter_file_is_named(lora: Path) -> None:
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: missing"):
        load_model(Checkpoint(lora, allow_pickle=True))
