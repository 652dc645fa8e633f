"""What files of tensors hold, read without torch: the same as torch reads, and no code of a pickle runs."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.layouts import write_weights
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.headers import read_headers
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, MissingFileError
from tinyllava_edge.model.checkpoint import tensor_facts
from tinyllava_edge.model.vlm import load_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(
        tmp_path / "tiny", hidden=32, intermediate=48, layers=1, dtype=torch.bfloat16
    )


def as_pickle(folder: Path, state: dict[str, Any]) -> None:
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("layout", ["flat", "sharded", "folders", "pickle"])
def test_headers_are_what_torch_reads(checkpoint: Path, layout: str) -> None:
    if layout == "pickle":
        state = load_file(checkpoint / "model.safetensors")
        views = {key: torch.nn.Parameter(value[...]) for key, value in state.items()}
        as_pickle(checkpoint, views)
    elif layout != "flat":
        model = load_model(Checkpoint(checkpoint))
        (checkpoint / "model.safetensors").unlink()
        write_weights(checkpoint, model, layout, torch.float16, 450)
    opened = Checkpoint(checkpoint, allow_pickle=True)
    assert dict(read_headers(opened)) == tensor_facts(opened)


def test_a_pickle_that_was_not_allowed_is_named_with_its_size(checkpoint: Path) -> None:
    as_pickle(checkpoint, {"a": torch.ones(3)})
    with pytest.raises(
        MissingFileError, match=r"pytorch_model.bin: a pickle of [\d,]+ bytes: --allow-pickle"
    ):
        read_headers(Checkpoint(checkpoint))


class Hostile:
    """Makes a directory when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hostile",)


@pytest.mark.parametrize(
    "value", [{"a": Hostile()}, [1], {"a": 1}, {"a": {"b": torch.ones(2)}}], ids=lambda value: type(value)
)
def test_no_code_of_a_pickle_runs(
    checkpoint: Path, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (checkpoint / "model.safetensors").unlink()
    torch.save(value, checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        read_headers(Checkpoint(checkpoint, allow_pickle=True))
    assert not (tmp_path / "hostile").exists()


def test_a_zip_archive_without_a_pickle_is_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with zipfile.ZipFile(checkpoint / "pytorch_model.bin", "w") as archive:
        archive.writestr("a/data.txt", pickle.dumps(1))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin cannot be read"):
        read_headers(Checkpoint(checkpoint, allow_pickle=True))


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_half_a_download_is_named(checkpoint: Path, kept: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged safetensors file"):
        read_headers(Checkpoint(checkpoint))


def test_a_header_that_is_no_header_is_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    for text in (
        b"[]",
        b"{}x",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 0]}}',
    ):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            read_headers(Checkpoint(checkpoint))
    save_file({"other.weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"'other\.weight' belongs to no part"):
        read_headers(Checkpoint(checkpoint))
