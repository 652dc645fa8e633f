"""Ladder stage 9: the runtime against torch with the very values that lie in a quantized file.

Both have lost what quantization costs, so what is left between them is how the runtime computes: the weights
stage proves the values, this one what is made of them, and neither depends on how much a model can lose.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tinyllava_edge.bounds import Gate
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.gates import TIMES_COST
from tinyllava_edge.metrics import kl_divergence, nmse
from tinyllava_edge.precisions import LANGUAGE_TYPES, OPENVINO_TYPES

from .ladder import StageResult, judge
from .language_files import read_embeddings
from .language_run import LanguageRun, input_rows
from .reference_checkpoint import CheckpointReference
from .stage_weights import dequantized_parameters

QUANTIZATION = "the quantization itself"


def check_dequantized(
    reference: CheckpointReference, path: Path, variant: str, run: LanguageRun, gates: tuple[Gate, ...]
) -> StageResult:
    """Logits of the reference's continuations. Holds one language model more while it runs.

    Args:
        reference: torch on the checkpoint.
        path: the file, GGUF or IR.
        variant: what the result is called.
        run: the runtime with that file.
        gates: the stage's.

    Raises:
        BundleError: the file lacks a tensor.
    """
    import torch

    _, table = read_embeddings(path)
    parameters = dequantized_parameters(reference, path)
    errors, divergence, cost, same = [], [], [], []
    for prompt in reference.prompts:
        continuation = reference.continuation(prompt)
        logits = run.forced_logits(prompt, continuation.ids)
        rows = input_rows([*run.elements(prompt), *continuation.ids[:-1]], table)
        expected = reference.logits_with(parameters, torch.from_numpy(rows))[-len(logits) :]
        errors.append(nmse(expected, logits))
        divergence.append(kl_divergence(expected, logits))
        cost.append(kl_divergence(continuation.logits, expected))
        same.append(continuation.logits.argmax(axis=-1) == expected.argmax(axis=-1))
    weights_kld = np.concatenate(cost)
    return judge(
        "dequantized",
        variant,
        {
            "nmse": max(errors),
            "mean_kld": float(np.concatenate(divergence).mean()),
            "weights_mean_kld": float(weights_kld.mean()),
            "weights_p99_kld": float(np.percentile(weights_kld, 99, method="higher")),
            "weights_top1_agreement": float(np.concatenate(same).mean()),
        },
        detail="torch with the file's values; weights_*: what these cost torch",
        cause=lambda: (
            "torch with the values of this file computes something else: the file's metadata, or the runtime"
        ),
        gates=gates,
    )


def cost_of_weights(result: StageResult) -> dict[str, float]:
    """What torch itself loses with the file's values, by the metrics of teacher_forced."""
    prefix = "weights_"
    values = {check.metric: check.value for check in result.checks}
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def quantization_cause(cost: Mapping[str, float], mean_kld: float, wider: str) -> str:
    """That a loss is the quantization's own; "" where torch loses too little of it with the file's values.

    Args:
        cost: of `cost_of_weights`, where dequantized passed.
        mean_kld: what the runtime loses.
        wider: of `wider_type`.
    """
    if not cost or not TIMES_COST * cost["mean_kld"] >= mean_kld:
        return ""
    return (
        f"{QUANTIZATION}: the file is what it should be, and torch with its values agrees with the runtime "
        f"and loses as much (mean KLD {cost['mean_kld']:.3g} of {mean_kld:.3g}); {wider}"
    )


def wider_type(bundle: Bundle, name: str) -> str:
    """What to do about a language variant that loses too much."""
    order = list(OPENVINO_TYPES if name in OPENVINO_TYPES else LANGUAGE_TYPES)
    wider = order[: order.index(name)] if name in order else order
    there = [v.name for v in bundle.manifest.variants if v.part == "language" and v.name in wider]
    if there:
        return f"take a wider type: --language {there[-1]} is in the bundle"
    usual = [known for known in ("f16", "q8_0", "q4_k_m", "ov_f16", "ov_int8") if known in wider] or order[:1]
    return f"take a wider type: export with --language {usual[-1]}"
