"""Open files of tensors: safetensors, its index of shards, and pickles that were allowed."""

import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tinyllava_edge.checkpoint.layouts import check_is_there, listed_shards
from tinyllava_edge.errors import CheckpointError, MissingFileError

TensorReader = Callable[[], torch.Tensor]


@contextmanager
def opened_tensors(
    path: Path, allow_pickle: bool
) -> Iterator[tuple[list[str], Callable[[str], torch.Tensor]]]:
    """The names in a file of tensors, and what reads one of them; errors as of the next two."""
    if path.suffix == ".bin":
        tensors = read_pickle(path, allow_pickle)
        yield list(tensors), tensors.__getitem__
    else:
        with opened_safetensors(path) as file:
            yield list(file.keys()), file.get_tensor


@contextmanager
def opened_safetensors(path: Path) -> Iterator[Any]:
    """A safetensors file; its header is checked, a tensor is read when it is asked for.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    check_is_there(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({error}). Copy it again.") from None


def read_pickle(path: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """Read a `.bin` file with `weights_only`, so that no code in it runs; its tensors are views of the file.

    Raises:
        CheckpointError: pickles were not allowed, or the file is refused or damaged.
    """
    if not allow_pickle:
        raise MissingFileError(
            f"{path}: is a pickle, which can run code when it is read. If you trust its source, give "
            "--allow-pickle; it is then read with weights_only, which refuses code."
        )
    check_is_there(path)
    try:
        # What torch < 1.6 wrote is no zip archive, and cannot be mapped.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:  # torch's own words advise to read it without weights_only
        raise CheckpointError(
            f"{path}: refused or damaged: it holds more than tensors, or is cut short. Copy it again; what "
            "holds more is not read."
        ) from None
    except Exception as error:  # torch raises many types on damaged pickles
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: refused or damaged ({reason[:120]}). Copy it again.") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items()
    ):
        raise CheckpointError(f"{path}: expected a dictionary of names and tensors.")
    return tensors


def tensor_files(whole: Path, allow_pickle: bool) -> list[Path]:
    """The file of a whole model, or the shards of its index, each holding just the tensors it says.

    Raises:
        CheckpointError: a shard is missing or outside, or index and shard disagree.
    """
    if whole.suffix != ".json":
        return [whole]
    shards = listed_shards(whole)
    for path, keys in shards.items():
        with opened_tensors(path, allow_pickle) as (names, _):
            odd = set(names) ^ keys
        if odd:
            raise CheckpointError(f"{path}: {min(odd)!r} is in only one of the index and the shard.")
    return list(shards)
