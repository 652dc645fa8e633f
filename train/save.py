"""A trained model -> TinyLLaVA Factory's flat layout (docs/sources/tinyllava.md#flat-safetensors)."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from tinyllava_edge.atomic_files import write_json
from tinyllava_edge.checkpoint.files import PROCESSOR_FILE, read_processor
from tinyllava_edge.checkpoint.layouts import FLAT_FILE, TOKENIZER_FILES
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import DataError
from tinyllava_edge.model.assets import processor_path, tokenizer_directory
from tinyllava_edge.model.checkpoint import tensor_facts
from tinyllava_edge.model.vlm import TinyLlava, upstream_state_dict

from .written import BESIDE_TOKENIZER


def write_weights(model: TinyLlava, directory: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write `model.safetensors`.

    Raises:
        DataError: a weight is not finite in `dtype`; the training went astray.
    """
    state = {
        name: tensor.detach().to(dtype).contiguous() for name, tensor in upstream_state_dict(model).items()
    }
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise DataError(
                f"{name}: not finite in {dtype}. The training diverged: lower the learning rate, or check "
                "the data."
            )
    save_file(state, directory / FLAT_FILE, metadata={"format": "pt"})
    (directory / FLAT_FILE).chmod(0o644)  # safetensors makes it private


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype that all weights of a checkpoint are stored in; float32 where they differ."""
    names = {dtype for _, dtype in tensor_facts(checkpoint).values()}
    dtype: torch.dtype = getattr(torch, names.pop()) if len(names) == 1 else torch.float32
    return dtype


def write_frame(
    source: Checkpoint, directory: Path, dtype: torch.dtype, *, max_length: int | None = None
) -> None:
    """Everything of a checkpoint but weights and sidecar, as in `source`, in TinyLLaVA Factory's layout.

    `max_length`: positions that are left of a conversation, where they were chosen.
    """
    raw = {key: value for key, value in source.factory_config.items() if key != "dtype"}
    if max_length is not None:
        raw["tokenizer_model_max_length"] = max_length
    write_json(directory / "config.json", {**raw, "torch_dtype": str(dtype).removeprefix("torch.")})
    copy_tokenizer(tokenizer_directory(source), directory)
    processor = processor_path(source)
    if processor is not None:
        write_json(directory / PROCESSOR_FILE, read_processor(processor))


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copy the files of a tokenizer that are there."""
    for name in (*TOKENIZER_FILES, *BESIDE_TOKENIZER):
        if (source / name).exists():
            shutil.copyfile(source / name, directory / name)
