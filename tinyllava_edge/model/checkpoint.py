"""Stream the tensors of a checkpoint, whatever its layout, under one set of names.

Canonical names start with `vision_tower.`, `connector.` or `language_model.`, followed by the name that the
part's own class gives. Layouts: spec/tinyllava.md section 3. Detection is by content, never by path names.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tinyllava_edge.bundle import sha256_of_file
from tinyllava_edge.config import read_json_object
from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

FLAT_FILE = "model.safetensors"
FLAT_INDEX = "model.safetensors.index.json"
PARTS = ("vision_tower", "connector", "language_model")
LAYOUTS = ("flat safetensors", "sharded safetensors", "three sub-directories")

# Upstream's prefix of each part in a flat file, and ours.
UPSTREAM_PREFIXES = {
    "language_model.": "language_model.",
    "vision_tower._vision_tower.": "vision_tower.",
    "connector._connector.": "connector.",
}


def checkpoint_layout(directory: Path) -> str:
    """Which of `LAYOUTS` a checkpoint directory has.

    Raises:
        CheckpointError: the directory holds no weights in a layout we know.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory. Give a checkpoint directory, or 'nano'.")
    if (directory / FLAT_FILE).exists():
        return LAYOUTS[0]
    if (directory / FLAT_INDEX).exists():
        return LAYOUTS[1]
    if all((directory / part / "pytorch_model.bin").exists() for part in PARTS):
        return LAYOUTS[2]
    raise CheckpointError(
        f"{directory}: holds no weights. Expected {FLAT_FILE}, or {FLAT_INDEX} with its shards, or "
        "sub-directories vision_tower, connector and language_model with pytorch_model.bin."
    )


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights, in a fixed order."""
    layout = checkpoint_layout(directory)
    if layout == LAYOUTS[0]:
        return [directory / FLAT_FILE]
    if layout == LAYOUTS[1]:
        return _shards(directory)
    return [directory / part / "pytorch_model.bin" for part in PARTS]


def checkpoint_sha256(directory: Path) -> str:
    """One hash over `config.json` and every weight file."""
    digest = hashlib.sha256()
    for path in [directory / "config.json", *weight_files(directory)]:
        digest.update(f"{path.relative_to(directory)}\0{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()


def iter_tensors(
    directory: Path, *, part: str | None = None, allow_pickle: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (canonical name, tensor in its stored dtype), one at a time.

    Args:
        directory: the checkpoint.
        part: only "vision_tower", "connector" or "language_model".
        allow_pickle: read `.bin` files, with `weights_only`, so that no code in them runs.

    Raises:
        CheckpointError: a file is missing, damaged or a pickle that was not allowed.
    """
    for path in weight_files(directory):
        tensors = (
            _safetensors(path, part) if path.suffix == ".safetensors" else _pickled(path, part, allow_pickle)
        )
        yield from tensors


def tensor_facts(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype (as safetensors spells it: F32, F16, BF16) of each tensor, from the headers alone."""
    facts: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in weight_files(directory):
        if path.suffix != ".safetensors":
            raise UnsupportedModelError(f"{path}: only safetensors headers can be read without loading.")
        with _opened(path) as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                view = file.get_slice(key)
                facts[_canonical(key, path)] = (tuple(view.get_shape()), str(view.get_dtype()))
    return facts


def _safetensors(path: Path, part: str | None) -> Iterator[tuple[str, torch.Tensor]]:
    with _opened(path) as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            name = _canonical(key, path)
            if part is None or name.startswith(f"{part}."):
                yield name, file.get_tensor(key)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        file = safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing. Download or copy the checkpoint again.") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({error}). Copy it again.") from None
    with file:
        yield file


def _canonical(key: str, path: Path) -> str:
    for prefix, ours in UPSTREAM_PREFIXES.items():
        if key.startswith(prefix):
            return ours + key[len(prefix) :]
    raise CheckpointError(
        f"{path}: tensor {key!r} belongs to no part. Expected names that start with "
        f"{', '.join(UPSTREAM_PREFIXES)}."
    )


def _pickled(path: Path, part: str | None, allow_pickle: bool) -> Iterator[tuple[str, torch.Tensor]]:
    if not allow_pickle:
        raise CheckpointError(
            f"{path}: is a pickle, which can run code when it is read. If you trust its source, give "
            "--allow-pickle; it is then read with weights_only, which refuses code."
        )
    own_part = path.parent.name
    if part is not None and part != own_part:
        return
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types on damaged or refused pickles
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: refused or damaged ({reason[:200]}).") from None
    wrapper = f"_{own_part}."  # `_connector.0.weight`; a tower's or a language model's keys have none
    for key, tensor in tensors.items():
        yield f"{own_part}.{key.removeprefix(wrapper)}", tensor


def _shards(directory: Path) -> list[Path]:
    path = directory / FLAT_INDEX
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map is missing or empty.")
    shards: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{path}: {key} is in {name!r}; a shard is a .safetensors file beside it.")
        shards.setdefault(name, set()).add(key)
    for name, keys in shards.items():
        with _opened(directory / name) as file:
            found = set(file.keys())
        if found != keys:
            odd = min(found ^ keys)
            raise CheckpointError(f"{directory / name}: {odd!r} is in only one of the index and the shard.")
    return [directory / name for name in sorted(shards)]
