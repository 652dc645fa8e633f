"""A checkpoint that says its head is its embedding: the file has it once, twice and equal, or is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.streaming import stream_model
from tinyllava_edge.model.vlm import load_model

EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


def write_with_head(folder: Path, change: float, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """A tied checkpoint whose file holds a head too, one value of it changed by this much."""
    path = write_tiny_checkpoint(folder, tied=True, dtype=dtype) / "model.safetensors"
    state = load_file(path)
    assert HEAD not in state
    state[HEAD] = state[EMBEDDING].clone()
    state[HEAD][-1, -1] += change
    save_file(state, path, metadata={"format": "pt"})
    return Checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_head_is_refused_and_both_are_named(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = write_with_head(tmp_path / "checkpoint", 0.125, dtype)
    for load in (load_model, lambda opened: stream_model(opened, tmp_path)):
        with pytest.raises(CheckpointError, match="tie_word_embeddings") as caught:
            load(checkpoint)
        assert HEAD in str(caught.value)
        assert EMBEDDING in str(caught.value)


def test_an_equal_head_passes(tmp_path: Path) -> None:
    model = load_model(write_with_head(tmp_path / "checkpoint", 0.0))
    language: Any = model.language_model
    assert language.lm_head.weight is language.model.embed_tokens.weight


def test_a_missing_head_of_an_untied_checkpoint_is_named(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "checkpoint") / "model.safetensors"
    state = load_file(path)
    del state[HEAD]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"missing, the first is '{HEAD}'"):
        load_model(Checkpoint(path.parent))
