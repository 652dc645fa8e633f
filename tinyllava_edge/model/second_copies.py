"""A parameter that a checkpoint has twice: equal ones pass, of different ones none is taken in silence.

Of several files of a whole model the one is read that transformers takes first, which is said
(docs/sources/tinyllava.md#checkpoint-layouts). Elsewhere upstream's loaders each take another one; which is
meant, nobody can see.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import torch

from tinyllava_edge.checkpoint.config import LanguageConfig
from tinyllava_edge.checkpoint.layouts import (
    ADAPTER,
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    FOLDERS,
    LORA,
    PARTS,
    adapter_file,
    is_adapter,
)
from tinyllava_edge.checkpoint.llava_line import trained_tower
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.tensor_names import BUFFERS
from tinyllava_edge.console import note
from tinyllava_edge.errors import CheckpointError

from .tensor_files import opened_tensors

_FLOAT32_ROUNDING = 1e-5  # relative; powers of theta are computed in several ways

Named = Iterator[tuple[str, torch.Tensor]]


def check_same(where: str, tensor: torch.Tensor, other_where: str, other: torch.Tensor) -> None:
    """Refuse two values of one parameter that differ.

    Raises:
        CheckpointError: names both places.
    """
    if not _is_same(tensor, other):
        raise CheckpointError(
            f"{where} and {other_where} are the same parameter, but differ. Remove one of them."
        )


def _is_same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    if tensor.dtype != other.dtype:
        tensor, other = tensor.double(), other.double()
    return torch.equal(tensor, other)


def check_other_files(
    checkpoint: Checkpoint,
    name_of: Callable[[str], str | None],
    readers: Callable[[], Mapping[str, torch.Tensor]],
) -> None:
    """Compare the weights that are read with those in files of the checkpoint that are not.

    Args:
        checkpoint: whose files.
        name_of: canonical name of a key in one of its flat files; None where it has none.
        readers: the tensors that are read, by canonical name; called where there is another file.

    Raises:
        CheckpointError: a parameter has another value there, or an adapter lies beside what is no base of it.
    """
    if checkpoint.layout not in (LORA, ADAPTER) and is_adapter(checkpoint.path):
        config = checkpoint.path / ADAPTER_CONFIG
        adapter = config if config.exists() else adapter_file(checkpoint.path)
        raise CheckpointError(
            f"{adapter}: an adapter, but {checkpoint.weight_files[0]} is not its base: that is three "
            "sub-directories. Remove the one that is not meant."
        )
    ours: Mapping[str, torch.Tensor] = {}
    for path, part in _other_files(checkpoint).items():
        if path.name == ADAPTER_PICKLE:
            note(f"{path} is not read: {adapter_file(checkpoint.path)} counts, as for PEFT")
            continue
        if path.suffix == ".bin" and not checkpoint.allow_pickle:
            _note_unread(path, checkpoint.weight_files[0])
            continue
        ours = ours or readers()
        for key, tensor in _tensors(path):
            name = (
                f"{part}.{key.removeprefix(f'_{part}.').removeprefix(f'{part}.')}" if part else name_of(key)
            )
            if name is not None and name in ours:
                if checkpoint.line is not None:  # whose vocabulary is cut, and whose tower was rounded
                    tensor = tensor[: len(ours[name])].to(ours[name].dtype)
                place = checkpoint.file_of(name)
                if part or checkpoint.layout in (FOLDERS, LORA):
                    check_same(f"{name!r} of {place}", ours[name], f"{key!r} of {path}", tensor)
                elif not _is_same(ours[name], tensor):
                    _note_second(place, path, key)
                    break


def check_buffer(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> None:
    """A value that a file holds and that is computed anyway must be what is computed.

    Raises:
        CheckpointError: it is another one.
    """
    if name.endswith(BUFFERS[0]):
        expected = torch.arange(tensor.numel(), dtype=torch.float64)
    else:
        expected = _inverse_frequencies(checkpoint.config.language)
    eps = torch.finfo(tensor.dtype).eps if tensor.dtype.is_floating_point else 0.0
    found = tensor.flatten().double()
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=max(_FLOAT32_ROUNDING, 2 * eps), atol=0.0
    ):
        raise CheckpointError(
            f"{checkpoint.file_of(name)}: tensor {checkpoint.stored_name(name)!r} is not what config.json "
            "makes of it, and it is computed, not read. Is config.json of another model?"
        )


def _inverse_frequencies(config: LanguageConfig) -> torch.Tensor:
    steps = torch.arange(0, config.rotary_dim, 2, dtype=torch.float64) / config.rotary_dim
    return 1.0 / config.rope_theta**steps


def _other_files(checkpoint: Checkpoint) -> dict[Path, str]:
    """Files of weights that the layout does not read, and of which part each is; "" where of all of them."""
    root, read = checkpoint.path, set(checkpoint.weight_files)
    folders = {root: "", **{root / part: part for part in PARTS}}
    name = checkpoint.config.vision.name_or_path if checkpoint.line is not None else ""
    if name and trained_tower(checkpoint.raw_config) is None:
        # What its code itself takes a tower from that was not trained.
        folders |= dict.fromkeys(checkpoint.folders(name)[1:2], "vision_tower")
    found = {root / "adapter_model.bin": ""}
    for folder, part in folders.items():
        for pattern in ("*.safetensors", "pytorch_model*.bin"):
            found |= dict.fromkeys(sorted(folder.glob(pattern)), part)
    return {path: part for path, part in found.items() if path.is_file() and path not in read}


def _tensors(path: Path) -> Named:
    with opened_tensors(path, allow_pickle=True) as (keys, read):
        for key in keys:
            yield key, read(key)


@cache
def _note_second(read: Path, path: Path, key: str) -> None:
    newer = "; it is the newer one" if path.stat().st_mtime > read.stat().st_mtime else ""
    note(
        f"{read} is read, which transformers takes first; {path} is not, and differs: in {key!r} for one"
        f"{newer}"
    )


@cache
def _note_unread(path: Path, read: Path) -> None:
    note(f"{path}: a pickle of weights, not read: those of {read} count. --allow-pickle compares them")
