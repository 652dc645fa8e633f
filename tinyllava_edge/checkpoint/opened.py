"""A checkpoint opened once: what the program hands on in the place of a path, and of how the path is read.

Layouts: docs/sources/tinyllava.md#checkpoint-layouts; which one it is, is seen by content, never by path
names. Needs no torch: the tensors are read by `tinyllava_edge.model.checkpoint`.
"""

import hashlib
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from os.path import lexists
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.verified_files import sha256_of_file

from .config import ModelConfig
from .files import (
    as_factory_config,
    is_llava,
    is_model,
    parse_json_object,
    read_small_file,
    tokenizer_length,
)
from .layouts import (
    ADAPTER,
    ADAPTER_CONFIG,
    FOLDERS,
    LEGACY,
    LINE,
    LLAVA,
    LORA,
    NANOVLM,
    PARTS,
    PICKLE_FILE,
    PROJECTOR,
    PROJECTOR_FILE,
    WHOLE,
    adapter_file,
    base_names,
    check_is_there,
    has_all_parts,
    is_adapter,
    no_weights,
    whole_file,
)
from .llava_line import Line, line_of
from .nanovlm import is_nanovlm, stored_name
from .pieces import Piece, line_pieces
from .read_config import check_model_type, model_config, with_budgets
from .source_names import names_under_sources
from .tensor_names import LLAVA_PREFIXES, UPSTREAM_PREFIXES

_OTHER_NAMES = (LINE, LEGACY, PROJECTOR, LLAVA)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint; each value is read when it is first asked for, and never again.

    Attributes:
        path: the directory.
        sources: a directory with the files of the repositories that config.json names, at
            `<sources>/<name>/` or directly in it.
        template: name of the prompt template, in the place of the stored or inferred one.
        allow_pickle: read `.bin` files, with `weights_only`, so that no code in them runs.
        tokens: the budget of its connector that is computed, where that has several; None is the largest.
        budgets: numbers of visual tokens that it is to learn, in the place of what its connector has.
        repository: of the hub, where it was downloaded from one.
        commit: the repository's, likewise.

    Raises:
        CheckpointError: any value: a file that it needs is missing or damaged.
    """

    path: Path
    _: KW_ONLY
    sources: Path | None = None
    template: str | None = None
    allow_pickle: bool = False
    tokens: int | None = None
    budgets: tuple[int, ...] = ()
    repository: str = ""
    commit: str = ""

    def __str__(self) -> str:
        return str(self.path)

    def folders(self, name: str) -> list[Path]:
        """Where the files of a repository that config.json names may be."""
        if self.sources is None:
            return [self.path]
        return [self.path, *(self.sources / each for each in names_under_sources(name)), self.sources]

    @cached_property
    def config_path(self) -> Path:
        """`config.json`; an adapter's directory may have none, and then its base's counts."""
        own = self.path / "config.json"
        if not lexists(own) and is_adapter(self.path):
            if self.base is None:
                raise no_weights(self.path)
            return self.base.config_path
        return own

    @cached_property
    def _config_file(self) -> bytes:
        return read_small_file(self.config_path)

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        """`config.json` as it is."""
        return parse_json_object(self._config_file, self.config_path)

    @cached_property
    def factory_config(self) -> dict[str, Any]:
        """`config.json` as TinyLLaVA Factory would write it."""
        found = as_factory_config(self.raw_config, self.config_path, self.sources, self.rows)
        return with_budgets(found, self.budgets, self.config_path) if self.budgets else found

    @cached_property
    def line(self) -> Line | None:
        """The code base of LLaVA's line that it is of."""
        return line_of(self.raw_config)

    @cached_property
    def rows(self) -> int | None:
        """Rows of the vocabulary that a loader of LLaVA's code line keeps at most: the tokenizer's length.

        Source: docs/sources/llava_line.md#vocabulary.
        """
        if self.line is None or not self.line.cuts_rows:
            return None
        for folder in self.folders(str(self.raw_config.get("_name_or_path") or "")):
            if (length := tokenizer_length(folder)) is not None:
                added = self.line.patch_tokens  # unless the tokenizer has them: then no row is behind it
                return length + added if self.raw_config.get("mm_use_im_patch_token", True) else length
        return None

    @cached_property
    def config(self) -> ModelConfig:
        """What `config.json` says (and `tinyllava_edge.json` where there is one), every value checked.

        Raises:
            UnsupportedModelError: a part is not supported; the message lists what is.
        """
        config = model_config(
            self.factory_config,
            self.config_path.parent,
            template=self.template,
            sources=self.sources,
            line=self.line,
        )
        return config if self.tokens is None else config.at_tokens(self.tokens)

    @cached_property
    def layout(self) -> str:
        """One of the layouts of `layouts.py`."""
        path = self.path
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such directory. Give a checkpoint directory, or 'nano'.")
        if has_all_parts(path):
            return LORA if (path / ADAPTER_CONFIG).exists() else FOLDERS
        if (whole := whole_file(path)) is not None:
            return self._whole_layout(whole)
        if lexists(path / "config.json") and self.line is not None:
            if is_adapter(path):
                raise self.line.unmerged(adapter_file(path), next(iter(base_names(path)), "BASE"))
            if lexists(path / PROJECTOR_FILE):
                return PROJECTOR
        if self.base is None:
            raise no_weights(path)
        return ADAPTER

    def _whole_layout(self, whole: Path) -> str:
        if self.line is not None:
            return LEGACY if self.line.code == "TinyLLaVABench" else LINE
        if is_nanovlm(self.raw_config):
            return NANOVLM
        if is_llava(self.raw_config):
            return LLAVA
        check_model_type(self.raw_config, self.config_path)
        return WHOLE[whole.name]

    @cached_property
    def base(self) -> "Checkpoint | None":
        """What an adapter alone is merged into: a whole checkpoint under `sources`."""
        if not is_adapter(self.path) or self.sources is None:
            return None
        names = [*base_names(self.path), ""]
        for folder in dict.fromkeys(folder for name in names for folder in self.folders(name)[1:]):
            if has_all_parts(folder) or (whole_file(folder) is not None and is_model(folder)):
                return Checkpoint(folder, sources=self.sources, allow_pickle=self.allow_pickle)
        return None

    @cached_property
    def weight_files(self) -> list[Path]:
        """The files that hold the weights, in a fixed order."""
        if self.layout in (FOLDERS, LORA):
            files = [self.path / part / PICKLE_FILE for part in PARTS]
        elif self.layout == ADAPTER:
            assert self.base is not None
            files = self.base.weight_files
        else:
            files = [path for piece in self.pieces for path in piece.files]
        adapter = [adapter_file(self.path)] if self.layout in (LORA, ADAPTER) else []
        return [check_is_there(path) for path in (*files, *adapter)]

    @cached_property
    def pieces(self) -> list[Piece]:
        """The files of a whole model, or what stands for one, and what is read from each."""
        if self.line is not None:
            trims = self.factory_config["vision_config"].get("vision_use_head") is False
            layers = self.config.vision.num_hidden_layers if trims else None
            return line_pieces(self.path, self.raw_config, self.folders, layers)
        whole = whole_file(self.path)
        assert whole is not None
        return [Piece(whole, LLAVA_PREFIXES if self.layout == LLAVA else UPSTREAM_PREFIXES)]

    def file_of(self, name: str) -> Path:
        """The file that a tensor of this canonical name is read from, or the index that lists it."""
        if self.layout == ADAPTER:
            assert self.base is not None
            return self.base.file_of(name)
        if self.layout in (FOLDERS, LORA):
            return self.path / name.split(".")[0] / PICKLE_FILE
        return self._piece_of(name).whole

    def stored_name(self, name: str) -> str:
        """What the file calls a tensor, where that is neither ours nor TinyLLaVA Factory's name."""
        if self.layout == NANOVLM:
            return stored_name(name)
        return self._piece_of(name).key_of(name) if self.layout in _OTHER_NAMES else name

    def _piece_of(self, name: str) -> Piece:
        own = (piece for piece in self.pieces if piece.part and name.startswith(f"{piece.part}."))
        return next(own, self.pieces[0])

    @cached_property
    def sha256(self) -> str:
        """One hash over `config.json` and every weight file."""
        files = self.weight_files
        digest = hashlib.sha256(f"config.json\0{hashlib.sha256(self._config_file).hexdigest()}\n".encode())
        for path in files:
            name = path.relative_to(self.path) if path.is_relative_to(self.path) else Path("base", path.name)
            digest.update(f"{name}\0{sha256_of_file(path)}\n".encode())
        return digest.hexdigest()
