"""Stream the tensors of a checkpoint, whatever its layout, under one set of names.

Canonical names start with `vision_tower.`, `connector.` or `language_model.`, followed by the name that
upstream gives behind its own prefix. Layouts: docs/sources/tinyllava.md#checkpoint-layouts.
"""

from collections.abc import Iterator
from functools import partial

import torch

from tinyllava_edge.checkpoint.layouts import ADAPTER, FOLDERS, LORA, NANOVLM, PARTS, PICKLE_FILE
from tinyllava_edge.checkpoint.nanovlm import names_in_file
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.tensor_names import (
    UPSTREAM_PREFIXES,
    Prefixes,
    canonical_name,
    canonical_name_in_folder,
)

from .lora import Adapter
from .second_copies import check_other_files, check_same
from .tensor_files import TensorReader, opened_tensors, read_pickle, tensor_files

HEAD_BIAS = "language_model.lm_head.bias"
# Loaders of LLaVA's code line cut these to the tokenizer's length.
ROWS_OF_TOKENS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


def iter_tensors(checkpoint: Checkpoint, *, part: str | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (canonical name, tensor in its stored dtype), one at a time.

    A LoRA adapter is merged on the way; a merged tensor is float32. Any other is a view of the file, whose
    pages the system reads when they are used, and may forget again. The vocabulary of a checkpoint of
    LLaVA's code line is cut to its tokenizer's length, as its own loader does.

    Args:
        checkpoint: whose tensors.
        part: only "vision_tower", "connector" or "language_model".

    Raises:
        CheckpointError: a file is missing, damaged or a pickle that was not allowed.
    """
    for name, read in iter_readers(checkpoint, part=part):
        yield name, read()


def iter_readers(checkpoint: Checkpoint, *, part: str | None = None) -> Iterator[tuple[str, TensorReader]]:
    """Yield (canonical name, what reads the tensor), for tensors that are needed later or more than once.

    Arguments and errors: as `iter_tensors`. A reader may be kept; it holds its file open.
    """
    if checkpoint.layout == FOLDERS:
        yield from _from_folders(checkpoint, part)
    elif checkpoint.layout == LORA:
        adapter = Adapter.read(checkpoint.path, UPSTREAM_PREFIXES, part, checkpoint.allow_pickle)
        yield from adapter.merge(_from_folders(checkpoint, part))
    elif checkpoint.layout == ADAPTER:
        assert checkpoint.base is not None
        adapter = Adapter.read(checkpoint.path, UPSTREAM_PREFIXES, part, checkpoint.allow_pickle)
        yield from adapter.merge(iter_readers(checkpoint.base, part=part))
    elif checkpoint.layout == NANOVLM:
        yield from _from_nanovlm(checkpoint, part)
    else:
        yield from _from_pieces(checkpoint, part)


def _from_pieces(checkpoint: Checkpoint, part: str | None) -> Iterator[tuple[str, TensorReader]]:
    rows = checkpoint.rows
    seen: dict[str, tuple[str, torch.Tensor]] = {}
    for piece in checkpoint.pieces:
        for path in tensor_files(piece.whole, checkpoint.allow_pickle):
            with opened_tensors(path, checkpoint.allow_pickle) as (keys, read):
                for key in keys:
                    name = piece.name(key, path)
                    if name is not None and (part is None or name.startswith(f"{part}.")):
                        tensor = read(key)
                        where, first = seen.setdefault(name, (f"{key!r} of {path}", tensor))
                        if first is not tensor:
                            check_same(where, first, f"{key!r} of {path}", tensor)
                            continue
                        yield name, (tensor[:rows] if name in ROWS_OF_TOKENS else tensor).detach
    if part in (None, "language_model") and HEAD_BIAS not in seen and _lacks_head_bias(checkpoint):
        yield HEAD_BIAS, partial(torch.zeros, checkpoint.config.language.vocab_size)


def _from_nanovlm(checkpoint: Checkpoint, part: str | None) -> Iterator[tuple[str, TensorReader]]:
    """Of its tensors one holds q, k and v one behind the other, and one the positions of a batch of one."""
    tied = checkpoint.config.language.tie_word_embeddings
    for path in tensor_files(checkpoint.file_of(""), checkpoint.allow_pickle):
        with opened_tensors(path, checkpoint.allow_pickle) as (keys, read):
            for key, names in names_in_file(keys, tied, path).items():
                if part is not None and not names[0].startswith(f"{part}."):
                    continue
                tensor = read(key)
                if names[0].endswith(".position_embedding.weight"):
                    tensor = tensor.flatten(0, -2)
                for name, piece in zip(names, tensor.chunk(len(names)), strict=False):
                    yield name, piece.detach


def tensor_facts(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype (as torch spells it) of each tensor; no weight is read but those a LoRA changes."""
    tensors = iter_tensors(checkpoint)
    return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors}


def check_second_copies(checkpoint: Checkpoint) -> None:
    """Compare what is read with every other file of the checkpoint; errors as `check_other_files`."""
    prefixes: Prefixes = UPSTREAM_PREFIXES
    if checkpoint.layout not in (FOLDERS, LORA, ADAPTER):
        prefixes = checkpoint.pieces[0].prefixes

    def name_of(key: str) -> str | None:
        known = prefixes if key.startswith(tuple(prefixes)) else UPSTREAM_PREFIXES
        return canonical_name(key, known, checkpoint.path) if key.startswith(tuple(known)) else None

    def tensors() -> dict[str, torch.Tensor]:
        found = dict(iter_tensors(checkpoint))
        if checkpoint.config.language.tie_word_embeddings:
            found.setdefault(ROWS_OF_TOKENS[1], found[ROWS_OF_TOKENS[0]])
        return found

    check_other_files(checkpoint, name_of, tensors)


def _lacks_head_bias(checkpoint: Checkpoint) -> bool:
    """Whether its code makes Phi's head without the bias that Phi elsewhere has."""
    line = checkpoint.line
    return line is not None and line.family == "phi" and not line.head_bias


def _from_folders(checkpoint: Checkpoint, part: str | None) -> Iterator[tuple[str, TensorReader]]:
    for own_part in PARTS if part is None else (part,):
        path = checkpoint.path / own_part / PICKLE_FILE
        tensors = read_pickle(path, checkpoint.allow_pickle)
        names: dict[str, list[str]] = {}
        for key in tensors:
            names.setdefault(canonical_name_in_folder(key, own_part, checkpoint.layout, path), []).append(key)
        for name, (first, *others) in names.items():
            tensor = tensors.pop(first)
            for key in others:
                check_same(f"{first!r} of {path}", tensor, f"{key!r} of {path}", tensors.pop(key))
            yield name, tensor.detach
