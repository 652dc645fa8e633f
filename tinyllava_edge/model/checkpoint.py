"""Stream the tensors of a checkpoint, whatever its layout, under one set of names.

Canonical names start with `vision_tower.`, `connector.` or `language_model.`, followed by the name that
upstream gives behind its own prefix. Layouts: spec/tinyllava.md section 3. Detection is by content, never by
path names.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from tinyllava_edge.bundle import sha256_of_file
from tinyllava_edge.checkpoint.families import FAMILIES
from tinyllava_edge.checkpoint.files import tokenizer_length
from tinyllava_edge.checkpoint.other_layouts import LEGACY_FAMILIES
from tinyllava_edge.checkpoint.read_config import is_legacy, is_llava, read_json_object
from tinyllava_edge.errors import CheckpointError

from .lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter
from .tensor_files import opened_safetensors, read_pickle, shards_of_index

FLAT_FILE = "model.safetensors"
FLAT_INDEX = "model.safetensors.index.json"
PARTS = ("vision_tower", "connector", "language_model")
TensorReader = Callable[[], torch.Tensor]

FLAT = "flat safetensors"
SHARDED = "sharded safetensors"
FOLDERS = "three sub-directories"
LORA = "LoRA adapter over three sub-directories"
LEGACY = "TinyLLaVABench (legacy)"
LLAVA = "transformers LlavaForConditionalGeneration"

# TinyLLaVABench's loader cuts these to the tokenizer's length.
_ROWS_OF_TOKENS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")

# Ends of the names of values that are computed, not learned; a file may hold them or not.
BUFFERS = (".position_ids", ".rotary_emb.inv_freq")

# Prefix of each part in a flat file, and ours. The first that fits counts.
UPSTREAM_PREFIXES = {
    "language_model.": "language_model.",
    "vision_tower._vision_tower.": "vision_tower.",
    "connector._connector.": "connector.",
}
LEGACY_PREFIXES = {
    "model.vision_tower.vision_tower.": "vision_tower.",
    "model.mm_projector.": "connector.",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
LLAVA_PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.linear_1.": "connector.0.",
    "model.multi_modal_projector.linear_2.": "connector.2.",
    "language_model.": "language_model.",
    "vision_tower.": "vision_tower.",
    "multi_modal_projector.linear_1.": "connector.0.",
    "multi_modal_projector.linear_2.": "connector.2.",
    "lm_head.": "language_model.lm_head.",
}
# transformers 5 saves SigLIP and CLIP without `vision_model.`.
_TOWER_WITHOUT_WRAPPER = tuple(
    f"vision_tower.{name}"
    for name in ("embeddings.", "encoder.", "post_layernorm.", "pre_layrnorm.", "head.")
)
_PREFIXES = {LEGACY: LEGACY_PREFIXES, LLAVA: LLAVA_PREFIXES}


def checkpoint_layout(directory: Path) -> str:
    """Which layout a checkpoint directory has.

    Raises:
        CheckpointError: the directory holds no weights in a layout we know.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory. Give a checkpoint directory, or 'nano'.")
    has_folders = all((directory / part / "pytorch_model.bin").exists() for part in PARTS)
    if has_folders:
        return LORA if (directory / ADAPTER_CONFIG).exists() else FOLDERS
    if (directory / FLAT_FILE).exists() or (directory / FLAT_INDEX).exists():
        config = read_json_object(directory / "config.json")
        if is_legacy(config) or is_llava(config):
            return LEGACY if is_legacy(config) else LLAVA
        return FLAT if (directory / FLAT_FILE).exists() else SHARDED
    raise CheckpointError(
        f"{directory}: holds no weights. Expected {FLAT_FILE}, or {FLAT_INDEX} with its shards, or "
        "sub-directories vision_tower, connector and language_model with pytorch_model.bin."
    )


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights, in a fixed order."""
    layout = checkpoint_layout(directory)
    if layout in (FOLDERS, LORA):
        folders = [directory / part / "pytorch_model.bin" for part in PARTS]
        return [*folders, directory / ADAPTER_WEIGHTS] if layout == LORA else folders
    if (directory / FLAT_FILE).exists():
        return [directory / FLAT_FILE]
    return shards_of_index(directory / FLAT_INDEX)


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

    A LoRA adapter is merged on the way; a merged tensor is float32. Any other is a view of the file, whose
    pages the system reads when they are used, and may forget again. The vocabulary of a legacy checkpoint
    is cut to its tokenizer's length, as its own loader does.

    Args:
        directory: the checkpoint.
        part: only "vision_tower", "connector" or "language_model".
        allow_pickle: read `.bin` files, with `weights_only`, so that no code in them runs.

    Raises:
        CheckpointError: a file is missing, damaged or a pickle that was not allowed.
    """
    for name, read in iter_readers(directory, part=part, allow_pickle=allow_pickle):
        yield name, read()


def iter_readers(
    directory: Path, *, part: str | None = None, allow_pickle: bool = False
) -> Iterator[tuple[str, TensorReader]]:
    """Yield (canonical name, what reads the tensor), for tensors that are needed later or more than once.

    Arguments and errors: as `iter_tensors`. A reader may be kept; it holds its file open.
    """
    layout = checkpoint_layout(directory)
    if layout == FOLDERS:
        for name, tensor in _from_folders(directory, part, allow_pickle):
            yield name, partial(_itself, tensor)
    elif layout == LORA:
        adapter = Adapter.read(directory, UPSTREAM_PREFIXES, part)
        yield from adapter.merge(_from_folders(directory, part, allow_pickle))
    else:
        rows = tokenizer_length(directory) if layout == LEGACY else None
        prefixes = _PREFIXES.get(layout, UPSTREAM_PREFIXES)
        for path in weight_files(directory):
            with opened_safetensors(path) as file:
                for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                    name = _canonical(key, prefixes, path)
                    if part is None or name.startswith(f"{part}."):
                        tensor = file.get_tensor(key)
                        yield name, partial(_itself, tensor[:rows] if name in _ROWS_OF_TOKENS else tensor)
        if (extra := _missing_head_bias(directory, layout)) and part in (None, "language_model"):
            yield extra[0], partial(torch.zeros, extra[1])


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def tensor_facts(directory: Path, *, allow_pickle: bool = False) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype (as torch spells it) of each tensor; from the headers alone where there are headers."""
    layout = checkpoint_layout(directory)
    if layout in (FOLDERS, LORA):
        tensors = iter_tensors(directory, allow_pickle=allow_pickle)
        return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors}
    facts: dict[str, tuple[tuple[int, ...], str]] = {}
    rows = tokenizer_length(directory) if layout == LEGACY else None
    prefixes = _PREFIXES.get(layout, UPSTREAM_PREFIXES)
    for path in weight_files(directory):
        with opened_safetensors(path) as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                view = file.get_slice(key)
                dtype = _DTYPE_NAMES.get(str(view.get_dtype()), str(view.get_dtype()))
                name, shape = _canonical(key, prefixes, path), tuple(view.get_shape())
                if rows is not None and name in _ROWS_OF_TOKENS:
                    shape = (min(rows, shape[0]), *shape[1:])
                facts[name] = (shape, dtype)
    if extra := _missing_head_bias(directory, layout):
        facts[extra[0]] = ((extra[1],), "float32")
    return facts


def _missing_head_bias(directory: Path, layout: str) -> tuple[str, int] | None:
    """Name and length of the head's bias, which TinyLLaVABench's Phi does not have, and Phi elsewhere has."""
    raw = read_json_object(directory / "config.json") if layout == LEGACY else {}
    if LEGACY_FAMILIES.get(str(raw.get("model_type"))) != "phi":
        return None
    rows = tokenizer_length(directory)
    stored = int(raw.get("vocab_size", FAMILIES["phi"].defaults["vocab_size"]))
    return "language_model.lm_head.bias", stored if rows is None else min(rows, stored)


_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _canonical(key: str, prefixes: dict[str, str], path: Path) -> str:
    for prefix, ours in prefixes.items():
        if key.startswith(prefix):
            name = ours + key[len(prefix) :]
            if prefixes is LLAVA_PREFIXES and name.startswith(_TOWER_WITHOUT_WRAPPER):
                name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
            return name
    raise CheckpointError(
        f"{path}: tensor {key!r} belongs to no part. Expected names that start with {', '.join(prefixes)}."
    )


def _from_folders(
    directory: Path, part: str | None, allow_pickle: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    for own_part in PARTS if part is None else (part,):
        tensors = read_pickle(directory / own_part / "pytorch_model.bin", allow_pickle)
        while tensors:
            key = next(iter(tensors))
            # `_connector.0.weight`; a tower's or a language model's keys have no such wrapper.
            yield f"{own_part}.{key.removeprefix(f'_{own_part}.')}", tensors.pop(key)
