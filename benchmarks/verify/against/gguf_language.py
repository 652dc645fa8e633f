"""A language model's GGUF file of llama.cpp: tensors undone to the checkpoint's, ids, and logits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.errors import ExportError
from tinyllava_edge.export.language_gguf import LanguageSource

from .findings import (
    LEAST_SNR_QUANTIZED_DB,
    LEAST_TENSOR_DB,
    MOST_NMSE,
    MOST_NMSE_EXACT,
    Finding,
    fact,
    logits,
    tensor_snr_db,
)
from .llama_process import ids_and_logits

_EXACT = ("F32", "F16", "BF16")


def language_findings(
    path: Path, keys: dict[str, Any], source: LanguageSource, reference: CheckpointReference
) -> Iterator[Finding]:
    """Stage by stage; what llama.cpp computes is computed in a process of its own."""
    family = source.checkpoint.config.language.family.llamacpp
    yield fact("general.architecture", family, keys.get("general.architecture"))
    if keys.get("general.architecture") != family:
        return
    for key, expected in source.architecture().metadata(source.checkpoint.config.language).items():
        name = f"{family}.{key}"
        if name in keys and not isinstance(expected, str | list):
            yield fact(name, expected, keys[name])
    weights = _weights(path, source)
    yield weights
    yield from _ids_and_logits(path, source, reference, is_exact=weights.what.endswith(_EXACT))


def _weights(path: Path, source: LanguageSource) -> Finding:
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    rules = source.rules()
    worst: tuple[float, str] = (np.inf, "every tensor is equal")
    for name, tensor in source.tensors():
        rule = rules[name]
        if rule.name not in stored:
            return Finding(
                stage="weights", what=rule.name, passed=False, cause=f"tensor {rule.name} is not in the file"
            )
        kind = stored[rule.name].tensor_type
        values = gguf.quants.dequantize(stored[rule.name].data, kind).astype(np.float32)
        if values.size != tensor.numel():
            said = f"shape {list(values.shape)}, expected {list(tensor.shape)}"
            return Finding(stage="weights", what=rule.name, gate=said, passed=False, cause=said)
        undone = rule.restore(torch.from_numpy(values.reshape(tuple(tensor.shape)).copy()))
        measured = tensor_snr_db(tensor.float().numpy(), undone.contiguous().numpy())
        least = LEAST_TENSOR_DB if kind.name in _EXACT else LEAST_SNR_QUANTIZED_DB
        worst = min(worst, (measured - least, f"{rule.name} {kind.name}"))
        if measured < least:
            return Finding(
                stage="weights",
                what=f"{rule.name} {kind.name}",
                figures={"snr_db": measured},
                gate=f"SNR >= {least:g} dB",
                passed=False,
                cause=f"{rule.name} is not the checkpoint's tensor: another model, or rows in another order",
            )
    return Finding(stage="weights", what=worst[1], figures={"margin_db": worst[0]})


def _ids_and_logits(
    path: Path, source: LanguageSource, reference: CheckpointReference, *, is_exact: bool
) -> Iterator[Finding]:
    case = next(prompt for prompt in reference.prompts if not prompt.pictures)
    text = source.assets.template.render(case.turns)
    wanted = list(reference.ids(case))
    try:
        ids, found = ids_and_logits(path, text, wanted)
    except ExportError as error:
        yield Finding(stage="ids", what="llama.cpp", passed=False, cause=str(error))
        return
    bos = [source.assets.bos_id] if source.assets.bos_id is not None else []
    is_same = bos + ids == wanted
    yield Finding(
        stage="ids",
        what=f"prompt {case.name!r}",
        passed=is_same,
        gate="" if is_same else f"{len(bos + ids)} ids, upstream has {len(wanted)}",
        cause="" if is_same else "the file's vocabulary or its pre-tokenizer splits text in another way",
    )
    expected = reference.logits(case)
    yield logits(
        f"prompt {case.name!r}",
        expected,
        found[:, : expected.shape[1]],
        most=MOST_NMSE_EXACT if is_exact else MOST_NMSE,
        cause="weights are equal, so a hyperparameter: RoPE, norms, scales",
    )
