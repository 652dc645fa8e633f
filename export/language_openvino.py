"""Language model of a checkpoint -> OpenVINO's IR: a graph (.xml) and its weights (.bin) beside it.

Tensors stream from the checkpoint's files through a scratch file that is mapped, so that no whole model is in
memory; the graph is `openvino_decoder.py`'s. OpenVINO itself writes the two files.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openvino
import torch

from tinyllava_edge.checkpoint.config import LanguageConfig
from tinyllava_edge.errors import ExportError
from tinyllava_edge.ir_tensors import open_tensors, rounded
from tinyllava_edge.memory import return_freed_memory
from tinyllava_edge.precisions import FLOAT16_MAX
from tinyllava_edge.verified_rule import StoredTensor

from .language_gguf import LanguageSource, OnProgress, no_progress
from .openvino_decoder import Decoder
from .openvino_weights import ROWS_VALUES, Floats, Weights


def write_language_openvino(
    path: Path, source: LanguageSource, variant: str, *, on_progress: OnProgress = no_progress
) -> None:
    """Write the language model; `path` ends in .xml, and the weights lie beside it.

    Args:
        path: written, and its .bin.
        source: the checkpoint.
        variant: one of `openvino_weights.TYPES`.
        on_progress: called with the tensors converted, and all that there are.

    Raises:
        ExportError: a tensor is not finite, or too large for its type; the message names it.
    """
    names = source.stored_names()
    with TemporaryDirectory(dir=path.parent) as scratch:
        weights = Weights(Path(scratch), variant)
        for done, (name, tensor) in enumerate(source.stored_tensors(), start=1):
            weights.add(name, tuple(tensor.shape), _slices(source, name, tensor, variant))
            on_progress(done, len(names))
        write_graph(path, source.checkpoint.config.language, weights)
        del weights
    return_freed_memory()


def write_graph(path: Path, config: LanguageConfig, weights: Weights) -> None:
    """Write a model's graph, and all weights in it once more, as one file beside it."""
    model = Decoder(config, weights.values, weights.rows, weights.__contains__).build()
    for number, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() not in weights.constants:  # the others have numbers of this process
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    openvino.serialize(model, str(path), str(path.with_suffix(".bin")))


def _slices(source: LanguageSource, name: str, tensor: torch.Tensor, variant: str) -> Iterator[Floats]:
    """A few rows at a time in float32."""
    rows = 2 * max(1, ROWS_VALUES // 2 // max(1, tensor[0].numel()))
    for start in range(0, len(tensor), rows):
        values = tensor[start : start + rows].float().contiguous().numpy()
        largest = float(np.abs(values).max(initial=0))
        limit = np.inf if variant == "ov_f32" else FLOAT16_MAX
        if not largest <= limit or not np.isfinite(largest):
            raise ExportError(f"{source.checkpoint}: {name} has {largest:g}, too large for {variant}.")
        yield values


def check_openvino(
    path: Path, source: LanguageSource, *, on_progress: OnProgress = no_progress
) -> dict[str, Any]:
    """Read an IR back and compare every tensor with the checkpoint's, to the bit (`StoredTensor`).

    Args:
        path: the .xml.
        source: what it was made from.
        on_progress: called with the tensors compared, and all that there are.

    Returns:
        counts: number of tensors of each type; lowest_snr_db and lowest_at, of the worst tensor against the
        checkpoint, or None where none differs.

    Raises:
        ExportError: a tensor is missing, too many, or differs; the message names it.
    """
    written = open_tensors(path)
    counts = Counter(tensor.kind.lower() for tensor in written.values())
    names = source.stored_names()
    worst: tuple[float, str | None] = (np.inf, None)
    for done, (name, tensor) in enumerate(source.stored_tensors(), start=1):
        stored = written.pop(name, None)
        if stored is None or stored.shape != tuple(tensor.shape):
            raise ExportError(f"{path.name}: {name} is missing, or is not {list(tensor.shape)}.")
        held, plain, start = StoredTensor(stored.kind, rounded), StoredTensor("OV_F32", rounded), 0
        for rows in _slices(source, name, tensor, "ov_f32"):
            in_file = stored.rows(start, start + len(rows))
            held.add(rows, in_file)
            plain.add(rows, in_file)
            start += len(rows)
        if held.fault:
            raise ExportError(f"{path.name}: {name} ({stored.kind}) is not the checkpoint's: {held.fault}.")
        worst = min(worst, (plain.snr_db, name), key=lambda found: found[0])
        on_progress(done, len(names))
    if written:
        raise ExportError(f"{path.name}: {next(iter(written))} is in no checkpoint.")
    is_equal = np.isinf(worst[0])
    return {
        "counts": dict(sorted(counts.items())),
        "lowest_snr_db": None if is_equal else worst[0],
        "lowest_at": None if is_equal else worst[1],
    }
