"""Stream the tensors of a checkpoint, whatever its layout, under one set of names.

Canonical names start with `vision_tower.`, `connector.` or `language_model.`, followed by the name that
upstream gives behind its own prefix. Layouts: docs/sources/tinyllava.md#checkpoint-layouts.
"""

from collections.abc import Iterator
from functools import partial

import torch

from tinyllava_edge.checkpoint.families import FAMILIES
from tinyllava_edge.checkpoint.files import tokenizer_length
from tinyllava_edge.checkpoint.layouts import ADAPTER, FOLDERS, LEGACY, LORA, NANOVLM, PARTS, PICKLE_FILE
from tinyllava_edge.checkpoint.nanovlm import names_in_file
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.other_layouts import LEGACY_FAMILIES
from tinyllava_edge.checkpoint.tensor_names import (
    PREFIXES,
    UPSTREAM_PREFIXES,
    canonical_name,
    canonical_name_in_folder,
)

from .lora import Adapter
from .second_copies import check_other_files, check_same
from .tensor_files import TensorReader, opened_tensors, read_pickle, tensor_files

# TinyLLaVABench's loader cuts these to the tokenizer's length.
_ROWS_OF_TOKENS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


def iter_tensors(checkpoint: Checkpoint, *, part: str | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (canonical name, tensor in its stored dtype), one at a time.

    A LoRA adapter is merged on the way; a merged tensor is float32. Any other is a view of the file, whose
    pages the system reads when they are used, and may forget again. The vocabulary of a legacy checkpoint
    is cut to its tokenizer's length, as its own loader does.

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
    else:
        yield from _from_whole_file(checkpoint, part)


def _from_whole_file(checkpoint: Checkpoint, part: str | None) -> Iterator[tuple[str, TensorReader]]:
    rows = tokenizer_length(checkpoint.path) if checkpoint.layout == LEGACY else None
    prefixes = PREFIXES.get(checkpoint.layout, UPSTREAM_PREFIXES)
    seen: dict[str, tuple[str, torch.Tensor]] = {}
    for path in tensor_files(checkpoint.file_of(""), checkpoint.allow_pickle):
        with opened_tensors(path, checkpoint.allow_pickle) as (keys, read):
            tied = checkpoint.layout == NANOVLM and checkpoint.config.language.tie_word_embeddings
            several = names_in_file(keys, tied, path) if checkpoint.layout == NANOVLM else {}
            for key in keys:
                if checkpoint.layout == NANOVLM:
                    yield from _pieces(several[key], partial(read, key), part)
                    continue
                name = canonical_name(key, prefixes, path)
                if part is None or name.startswith(f"{part}."):
                    tensor = read(key)
                    where, first = seen.setdefault(name, (f"{key!r} of {path}", tensor))
                    if first is not tensor:
                        check_same(where, first, f"{key!r} of {path}", tensor)
                        continue
                    yield name, (tensor[:rows] if name in _ROWS_OF_TOKENS else tensor).detach
    if part in (None, "language_model") and (length := _missing_head_bias(checkpoint, rows)):
        yield "language_model.lm_head.bias", partial(torch.zeros, length)


def _pieces(
    names: tuple[str, ...], read: TensorReader, part: str | None
) -> Iterator[tuple[str, TensorReader]]:
    """What a tensor of nanoVLM's holds: q, k and v one behind the other, or positions of one picture."""
    if part is not None and not names[0].startswith(f"{part}."):
        return
    tensor = read()
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
    prefixes = PREFIXES.get(checkpoint.layout, UPSTREAM_PREFIXES)

    def name_of(key: str) -> str | None:
        known = prefixes if key.startswith(tuple(prefixes)) else UPSTREAM_PREFIXES
        return canonical_name(key, known, checkpoint.path) if key.startswith(tuple(known)) else None

    def tensors() -> dict[str, torch.Tensor]:
        found = dict(iter_tensors(checkpoint))
        if checkpoint.config.language.tie_word_embeddings:
            found.setdefault(_ROWS_OF_TOKENS[1], found[_ROWS_OF_TOKENS[0]])
        return found

    check_other_files(checkpoint, name_of, tensors)


def _missing_head_bias(checkpoint: Checkpoint, rows: int | None) -> int:
    """Length of the head's bias, which TinyLLaVABench's Phi does not have, and Phi elsewhere has; else 0."""
    raw = checkpoint.raw_config
    if checkpoint.layout != LEGACY or LEGACY_FAMILIES[raw["model_type"]] != "phi":
        return 0
    stored = int(raw.get("vocab_size", FAMILIES["phi"].defaults["vocab_size"]))
    return stored if rows is None else min(rows, stored)


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
