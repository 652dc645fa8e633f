"""The files that one model's weights are gathered from, and what is read from each.

Sources: docs/sources/llava_line.md#keys-of-the-weights,
docs/sources/llava_line.md#which-towers-weights-count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from os.path import lexists  # a link that leads nowhere is not absent, but damaged
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import CheckpointError, MissingFileError

from .file_headers import names_in
from .files import read_json_object
from .layouts import PROJECTOR_FILE, check_is_there, listed_shards, no_weights, whole_file
from .llava_line import is_tower, line_of, tower_name, trained_tower
from .tensor_names import (
    LINE_PREFIXES,
    LINE_TOWERS,
    TOWER_PREFIXES,
    Prefixes,
    canonical_name,
    layer_of_tower,
    stored_name,
)

Folders = Callable[[str], list[Path]]


@dataclass(frozen=True)
class Piece:
    """One file of weights, or the index of its shards.

    Attributes:
        whole: the file.
        prefixes: of its names -> ours; None where the model has no such part.
        part: what it alone has, as `vision_tower`; "" for the rest.
        without: prefix of our names that another file has, "" for none.
        layers: of the tower, whose further ones and whose head are not read; None where all are.
    """

    whole: Path
    prefixes: Prefixes
    part: str = ""
    without: str = ""
    layers: int | None = None

    @cached_property
    def files(self) -> list[Path]:
        """The file, or the shards of the index."""
        listed = list(listed_shards(self.whole)) if self.whole.suffix == ".json" else [self.whole]
        return [check_is_there(path) for path in listed]

    @cached_property
    def keys(self) -> dict[str, str]:
        """Our name of each tensor -> the file's; nothing where only torch can tell."""
        try:
            found = {self.name(key, self.whole): key for key in names_in(self.whole)}
        except MissingFileError:
            return {}
        return {name: key for name, key in found.items() if name is not None}

    def key_of(self, name: str) -> str:
        """What the file calls, or would call, a tensor of ours."""
        return self.keys.get(name) or stored_name(name, self.prefixes, self.keys.values())

    def name(self, key: str, path: Path) -> str | None:
        """Our name of a tensor, None where it is not read.

        Raises:
            CheckpointError: it belongs to no part, or to another one than is to be here.
            UnsupportedModelError: it is of an adapter that was not merged.
        """
        name = canonical_name(key, self.prefixes, path)
        if name is not None and self.part and not name.startswith(f"{self.part}."):
            raise CheckpointError(
                f"{path}: tensor {key!r} is none of the {self.part}, which alone is expected in this file."
            )
        if name is None or (self.without and name.startswith(self.without)):
            return None
        if self.layers is not None and layer_of_tower(name) >= self.layers:
            return None
        return name


def line_pieces(path: Path, raw: Mapping[str, Any], folders: Folders, layers: int | None) -> list[Piece]:
    """Those of a checkpoint of LLaVA's code line.

    Args:
        path: the checkpoint.
        raw: its config.json.
        folders: where the files of a repository that it names may be.
        layers: of the tower that are computed, where its last one is not.

    Raises:
        MissingFileError: the language model or the tower is nowhere.
        CheckpointError: a file is damaged.
    """
    whole = whole_file(path)
    if whole is not None:
        pieces = [Piece(whole, LINE_PREFIXES, layers=layers)]
    elif lexists(path / PROJECTOR_FILE):
        base = _language_model(path, raw, folders)
        pieces = [
            Piece(base, LINE_PREFIXES, without="connector.", layers=layers),
            Piece(path / PROJECTOR_FILE, LINE_PREFIXES, part="connector"),
        ]
    else:
        raise no_weights(path)
    if _has_tower(pieces[0].whole):
        return pieces
    tower = _tower(path, raw, folders, pieces[0].whole)
    return [*pieces, Piece(tower, TOWER_PREFIXES, part="vision_tower", layers=layers)]


def _has_tower(whole: Path) -> bool:
    try:
        return any(name.startswith(LINE_TOWERS) for name in names_in(whole))
    except MissingFileError:  # of torch before 1.6, which only torch can tell
        return True


def _language_model(path: Path, raw: Mapping[str, Any], folders: Folders) -> Path:
    """What `mm_projector.bin` was trained for."""
    line, name = line_of(raw), str(raw.get("_name_or_path") or "")
    assert line is not None
    for folder in folders(name)[1:]:
        config = read_json_object(folder / "config.json") if lexists(folder / "config.json") else {}
        whole, own = whole_file(folder), line_of(config)
        family = own.family if own is not None else config.get("model_type")
        if whole is not None and family == line.family:
            return whole
    raise MissingFileError(
        f"{path / PROJECTOR_FILE}: a projector without its language model ({name!r} by config.json). Give "
        f"--sources DIR with the {line.family} model's files in DIR/{name or 'NAME'} or in DIR itself."
    )


def _tower(path: Path, raw: Mapping[str, Any], folders: Folders, whole: Path) -> Path:
    name = tower_name(raw)
    if key := trained_tower(raw):
        raise MissingFileError(
            f"{whole}: holds no vision tower, though {path / 'config.json'} says by {key} that it was "
            f"trained, so that {name!r} is not it. Download or copy the checkpoint again."
        )
    for folder in (path / "vision_tower", *folders(name)[1:]):
        config = read_json_object(folder / "config.json") if lexists(folder / "config.json") else {}
        if (found := whole_file(folder)) is not None and is_tower(config):
            return found
    raise MissingFileError(
        f"{whole}: holds no vision tower, which config.json names: {name!r}. Give --sources DIR with that "
        f"repository's config.json and weights in DIR/{name or 'NAME'} or in DIR itself."
    )
