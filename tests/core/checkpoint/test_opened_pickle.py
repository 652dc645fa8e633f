"""Pickles are programs: refused, and with --allow-pickle read without running what is in them."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.core.checkpoint.test_opened import split_into_pickles
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.vlm import load_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", hidden=32, intermediate=48, layers=1)
    split_into_pickles(checkpoint)
    return checkpoint


class Hostile:
    """Runs a command when it is unpickled the ordinary way."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_a_pickle_is_refused_with_the_way_out(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: is a pickle.*--allow-pickle"):
        load_model(Checkpoint(checkpoint))
    assert load_model(Checkpoint(checkpoint, allow_pickle=True))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_never_runs(checkpoint: Path, tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "ran"
    content = {"0.weight": Hostile(f"touch {marker}")}
    path = checkpoint / "connector" / "pytorch_model.bin"
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for allow_pickle in (False, True):
        with pytest.raises(
            CheckpointError, match=r"connector/pytorch_model.bin|language_model|vision_tower"
        ) as caught:
            load_model(Checkpoint(checkpoint, allow_pickle=allow_pickle))
        assert "`False`" not in str(caught.value)  # torch's own advice is to read it all the same
        assert not marker.exists()
    pickle.loads(pickle.dumps(Hostile(f"touch {marker}")))  # the trap is real
    assert marker.exists()


@pytest.mark.parametrize(
    "content", [[1, 2], {"0.weight": [1.0]}, {3: torch.zeros(1)}, torch.zeros(3), None], ids=repr
)
def test_a_pickle_of_something_else_is_refused(checkpoint: Path, content: Any) -> None:
    torch.save(content, checkpoint / "connector" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"connector/pytorch_model.bin"):
        load_model(Checkpoint(checkpoint, allow_pickle=True))


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_pickle_is_named(checkpoint: Path, kept: float) -> None:
    path = checkpoint / "language_model" / "pytorch_model.bin"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept if kept >= 1 else len(data) * kept)])
    with pytest.raises(
        CheckpointError, match=r"language_model/pytorch_model.bin: refused or damaged"
    ) as caught:
        load_model(Checkpoint(checkpoint, allow_pickle=True))
    assert "\n" not in str(caught.value)


def test_what_training_leaves_beside_the_weights_is_never_read(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", hidden=32, intermediate=48, layers=1)
    (checkpoint / "training_args.bin").write_bytes(pickle.dumps(Hostile(f"touch {tmp_path / 'ran'}")))
    shutil.copy(checkpoint / "training_args.bin", checkpoint / "optimizer.pt")
    load_model(Checkpoint(checkpoint))
    assert not (tmp_path / "ran").exists()
