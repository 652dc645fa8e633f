"""Ladder stage 9: the runtime against torch with the very values that lie in a quantized file.

Both have lost what quantization costs, so what is left between them is how the runtime computes: the weights
stage proves the values, this one what is made of them, and neither depends on how much a model can lose.
"""

from pathlib import Path

import numpy as np

from tinyllava_edge.metrics import kl_divergence, nmse
from tinyllava_edge.precisions import DEQUANTIZED

from .ladder import StageResult, judge
from .language_run import LanguageRun, input_rows
from .reference_checkpoint import CheckpointReference
from .stage_weights import dequantized_parameters


def check_dequantized(
    reference: CheckpointReference, path: Path, variant: str, run: LanguageRun
) -> StageResult:
    """Logits of the reference's continuations. Holds one language model more while it runs.

    Args:
        reference: torch on the checkpoint.
        path: the GGUF file.
        variant: what the result is called.
        run: the runtime with that file.

    Raises:
        BundleError: the file lacks a tensor.
    """
    import torch

    from .gguf_files import read_tensor

    _, table = read_tensor(path, "token_embd.weight")
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
        gates=DEQUANTIZED,
    )


def cost_of_weights(result: StageResult) -> dict[str, float]:
    """What torch itself loses with the file's values, by the metrics of teacher_forced."""
    prefix = "weights_"
    values = {check.metric: check.value for check in result.checks}
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
