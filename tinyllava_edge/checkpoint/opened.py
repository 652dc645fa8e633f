"""A checkpoint opened once: what the program hands on in the place of a path, and of how the path is read.

Layouts: docs/sources/tinyllava.md#checkpoint-layouts; which one it is, is seen by content, never by path
names. Needs no torch: the tensors are read by `tinyllava_edge.model.checkpoint`.
"""

import hashlib
import re
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.verified_files import sha256_of_file

from .config import ModelConfig
from .files import (
    as_factory_config,
    is_legacy,
    is_llava,
    parse_json_object,
    read_json_object,
    read_small_file,
)
from .read_config import model_config

FLAT_FILE = "model.safetensors"
FLAT_INDEX = "model.safetensors.index.json"
PARTS = ("vision_tower", "connector", "language_model")
PICKLE_FILE = "pytorch_model.bin"  # of each part
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

FLAT = "flat safetensors"
SHARDED = "sharded safetensors"
FOLDERS = "three sub-directories"  # docs/sources/tinyllava.md#three-sub-directories
LORA = "LoRA adapter over three sub-directories"
LEGACY = "TinyLLaVABench (legacy)"
LLAVA = "transformers LlavaForConditionalGeneration"

_SHARD_NAME = re.compile(r"\w[\w.-]*\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint; each value is read when it is first asked for, and never again.

    Attributes:
        path: the directory.
        sources: a directory with the files of the repositories that config.json names, at
            `<sources>/<name>/` or directly in it.
        template: name of the prompt template, in the place of the stored or inferred one.
        allow_pickle: read `.bin` files, with `weights_only`, so that no code in them runs.

    Raises:
        CheckpointError: any value: a file that it needs is missing or damaged.
    """

    path: Path
    _: KW_ONLY
    sources: Path | None = None
    template: str | None = None
    allow_pickle: bool = False

    def __str__(self) -> str:
        return str(self.path)

    def folders(self, name: str) -> list[Path]:
        """Where the files of a repository that config.json names may be."""
        if self.sources is None:
            return [self.path]
        plain = name and not Path(name).is_absolute() and ".." not in Path(name).parts
        return [self.path, *([self.sources / name] if plain else []), self.sources]

    @cached_property
    def _config_file(self) -> bytes:
        return read_small_file(self.path / "config.json")

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        """`config.json` as it is."""
        return parse_json_object(self._config_file, self.path / "config.json")

    @cached_property
    def factory_config(self) -> dict[str, Any]:
        """`config.json` as TinyLLaVA Factory would write it."""
        return as_factory_config(self.raw_config, self.path / "config.json", self.sources)

    @cached_property
    def config(self) -> ModelConfig:
        """What `config.json` says (and `tinyllava_edge.json` where there is one), every value checked.

        Raises:
            UnsupportedModelError: a part is not supported; the message lists what is.
        """
        return model_config(self.factory_config, self.path, template=self.template, sources=self.sources)

    @cached_property
    def layout(self) -> str:
        """One of this module's layouts."""
        path = self.path
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such directory. Give a checkpoint directory, or 'nano'.")
        if all((path / part / PICKLE_FILE).exists() for part in PARTS):
            return LORA if (path / ADAPTER_CONFIG).exists() else FOLDERS
        if (path / FLAT_FILE).exists() or (path / FLAT_INDEX).exists():
            if is_legacy(self.raw_config) or is_llava(self.raw_config):
                return LEGACY if is_legacy(self.raw_config) else LLAVA
            return FLAT if (path / FLAT_FILE).exists() else SHARDED
        raise CheckpointError(
            f"{path}: holds no weights. Expected {FLAT_FILE}, or {FLAT_INDEX} with its shards, or "
            "sub-directories vision_tower, connector and language_model with pytorch_model.bin."
        )

    @cached_property
    def weight_files(self) -> list[Path]:
        """The files that hold the weights, in a fixed order."""
        if self.layout in (FOLDERS, LORA):
            adapter = [self.path / ADAPTER_WEIGHTS] if self.layout == LORA else []
            files = [*(self.path / part / PICKLE_FILE for part in PARTS), *adapter]
        elif (self.path / FLAT_FILE).exists():
            files = [self.path / FLAT_FILE]
        else:
            files = list(listed_shards(self.path / FLAT_INDEX))
        return [check_is_there(path) for path in files]

    @cached_property
    def sha256(self) -> str:
        """One hash over `config.json` and every weight file."""
        files = self.weight_files
        digest = hashlib.sha256(f"config.json\0{hashlib.sha256(self._config_file).hexdigest()}\n".encode())
        for path in files:
            digest.update(f"{path.relative_to(self.path)}\0{sha256_of_file(path)}\n".encode())
        return digest.hexdigest()


def listed_shards(index: Path) -> dict[Path, set[str]]:
    """The shards of a `model.safetensors.index.json`, in the order of their names: what each should hold.

    Raises:
        CheckpointError: the index is damaged, or a shard is not a file beside it.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty.")
    shards: dict[Path, set[str]] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise CheckpointError(f"{index}: {key} is in {name!r}; a shard is a .safetensors file beside it.")
        shards.setdefault(index.parent / name, set()).add(key)
    return dict(sorted(shards.items()))


def check_is_there(path: Path) -> Path:
    """Refuse a file of weights that is missing; opening a pipe in its place would wait for ever."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing. Download or copy the checkpoint again.")
    return path
