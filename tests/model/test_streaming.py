"""A streamed model gives what a loaded one gives, bit for bit, and holds nothing between two passes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DynamicCache

from tests.golden import CHECKPOINT_NAMES, golden_checkpoint, shared_fixtures
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.language_model import continued_logits
from tinyllava_edge.model.streaming import stream_model
from tinyllava_edge.model.vlm import TinyLlava, load_model


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def streamed(checkpoint: Path, scratch: Path, sources: Path | None = None) -> TinyLlava:
    scratch.mkdir(exist_ok=True)
    model = stream_model(Checkpoint(checkpoint, sources=sources, allow_pickle=True), scratch)
    assert not list(scratch.iterdir())
    return model


def greedy_logits(model: TinyLlava, embeddings: torch.Tensor) -> list[torch.Tensor]:
    """Logits of a prompt with two pictures' rows in it, and of three greedy tokens behind a cache."""
    rows = model.splice([3, 5, -200, 7, 9, 3, -200, 11], embeddings)
    cache = DynamicCache()
    found = [continued_logits(model.language_model, rows[None], cache)]
    for _ in range(3):
        ids = [int(found[-1][0, -1].argmax())]
        rows = model.splice(ids, torch.zeros(0, 0, rows.shape[1]))
        found.append(continued_logits(model.language_model, rows[None], cache))
    return found


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_every_stage_is_bit_equal(name: str, tmp_path: Path) -> None:
    checkpoint, sources = golden_checkpoint(name) / "model", shared_fixtures() / "sources"
    whole = load_model(Checkpoint(checkpoint, sources=sources, allow_pickle=True))
    model = streamed(checkpoint, tmp_path / "scratch", sources)
    size = whole.config.vision.image_size
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    features = whole.vision_tower(pixels)
    embeddings = whole.connector(features)
    assert torch.equal(model.vision_tower(pixels), features)
    assert torch.equal(model.connector(features), embeddings)
    for expected, actual in zip(
        greedy_logits(whole, embeddings), greedy_logits(model, embeddings), strict=True
    ):
        assert torch.isfinite(expected).all()
        assert torch.equal(expected, actual)
    assert all(parameter.is_meta for parameter in model.language_model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_weight_is_there_only_while_its_module_runs(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", dtype=dtype, tied=tied)
    model = streamed(checkpoint, tmp_path / "scratch")
    held: list[list[str]] = []

    def see(module: nn.Module, arguments: object, output: object) -> None:
        real = [name for name, value in model.language_model.named_parameters() if not value.is_meta]
        held.append(real)

    for name in ("model.layers.1.mlp.up_proj", "lm_head"):
        module = model.language_model.get_submodule(name)
        module.register_forward_hook(see, prepend=True)  # before the weights are taken back
    expected = load_model(Checkpoint(checkpoint)).logits([1, 5, 9, 2])
    assert torch.equal(model.logits([1, 5, 9, 2]), expected)
    assert held == [["model.layers.1.mlp.up_proj.weight"], ["lm_head.weight"]]
    assert all(parameter.is_meta for parameter in model.language_model.parameters())


def test_an_error_in_a_pass_leaves_nothing_behind(tmp_path: Path) -> None:
    model = streamed(write_tiny_checkpoint(tmp_path / "checkpoint"), tmp_path / "scratch")
    with pytest.raises(RuntimeError):
        model.language_model(inputs_embeds=torch.zeros(1, 2, 7))  # of another width
    assert all(parameter.is_meta for parameter in model.language_model.parameters())


def test_only_the_rows_that_are_looked_up_are_read(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint")
    model = streamed(checkpoint, tmp_path / "scratch")
    embed = model.language_model.get_submodule("model.embed_tokens")
    shapes = []
    embed.register_forward_hook(
        lambda module, arguments, output: shapes.append(tuple(module.weight.shape)), prepend=True
    )
    rows = model.splice([7, 3, 7, 449], torch.zeros(0, 0, 64))
    assert shapes == [(3, 64)]
    assert torch.equal(rows, load_model(Checkpoint(checkpoint)).splice([7, 3, 7, 449], torch.zeros(0, 0, 64)))


def test_tensors_and_bytes_are_told(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", dtype=torch.float16)
    seen: dict[str, torch.dtype] = {}
    sizes: list[int] = []
    model = stream_model(
        Checkpoint(checkpoint),
        tmp_path,
        on_tensor=lambda name, tensor: seen.update({name: tensor.dtype}),
        on_bytes=sizes.append,
    )
    assert set(seen.values()) == {torch.float16}
    assert len(seen) == len(load_file(checkpoint / "model.safetensors"))
    model.logits([1, 2])
    language = {name for name in seen if name.startswith("language_model.")}
    parameters = sum(parameter.numel() for parameter in model.language_model.parameters())
    assert len(sizes) == len(language) - 1  # not the embedding: only rows of it were read
    assert sum(sizes) == 2 * (parameters - 450 * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"language_model.model.norm.weight": None}, "missing, the first is 'language_model.model.norm"),
        ({"language_model.model.extra.weight": torch.ones(3)}, "extra.weight' is left over"),
        ({"language_model.model.norm.weight": torch.ones(63)}, r"norm.weight' has shape \[63\].*\[64\]"),
        ({"language_model.model.norm.weight": torch.full((64,), torch.inf)}, "norm.weight' holds NaN or inf"),
        ({"language_model.model.norm.weight": torch.ones(64, dtype=torch.int32)}, "is torch.int32"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint")
    tensors = {**load_file(checkpoint / "model.safetensors"), **change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        streamed(checkpoint, tmp_path / "scratch")
    assert not list((tmp_path / "scratch").iterdir())
