"""Open files of tensors: safetensors, its index of shards, and pickles that were allowed."""

import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tinyllava_edge.checkpoint.read_config import read_json_object
from tinyllava_edge.errors import CheckpointError

_SHARD_NAME = re.compile(r"\w[\w.-]*\.safetensors")


@contextmanager
def opened_safetensors(path: Path) -> Iterator[Any]:
    """A safetensors file; its header is checked, a tensor is read when it is asked for.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.is_file():  # opening a pipe would wait for ever
        raise CheckpointError(f"{path}: missing. Download or copy the checkpoint again.")
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
        raise CheckpointError(
            f"{path}: is a pickle, which can run code when it is read. If you trust its source, give "
            "--allow-pickle; it is then read with weights_only, which refuses code."
        )
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


def shards_of_index(path: Path) -> list[Path]:
    """The shards that a `model.safetensors.index.json` lists, each holding just the tensors it says.

    Raises:
        CheckpointError: a shard is missing or outside, or index and shard disagree.
    """
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map is missing or empty.")
    shards: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise CheckpointError(f"{path}: {key} is in {name!r}; a shard is a .safetensors file beside it.")
        shards.setdefault(name, set()).add(key)
    for name, keys in shards.items():
        with opened_safetensors(path.parent / name) as file:
            found = set(file.keys())
        if found != keys:
            odd = min(found ^ keys)
            raise CheckpointError(f"{path.parent / name}: {odd!r} is in only one of the index and the shard.")
    return [path.parent / name for name in sorted(shards)]
