"""Ladder stage 9: the runtime against torch with the very values that lie in a quantized file.

Both have lost what quantization costs, so what is left between them is how the runtime computes: the weights
stage proves the values, this one what is made of them, and neither depends on how much a model can lose.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinyllava_edge.metrics import kl_divergence, nmse
from tinyllava_edge.precisions import DEQUANTIZED

from .ladder import StageResult, judge
from .reference import PromptCase
from .reference_checkpoint import CheckpointReference
from .stage_weights import dequantized_parameters

Floats = npt.NDArray[np.float32]


def check_dequantized(
    reference: CheckpointReference,
    path: Path,
    variant: str,
    found: Mapping[PromptCase, Floats],
    input_rows: Callable[[PromptCase, Sequence[int]], Floats],
) -> StageResult:
    """Logits of the reference's continuations. Holds one language model more while it runs.

    Args:
        reference: torch on the checkpoint.
        path: the GGUF file.
        variant: its name.
        found: of each prompt the runtime's logits [tokens, vocab], those teacher_forced judges.
        input_rows: rows [positions, hidden] of a prompt and of the ids behind it, as the runtime has them.

    Raises:
        BundleError: the file lacks a tensor.
    """
    import torch

    parameters = dequantized_parameters(reference, path)
    errors, divergence, cost, same = [], [], [], []
    for prompt, logits in found.items():
        continuation = reference.continuation(prompt)
        rows = torch.from_numpy(input_rows(prompt, continuation.ids[:-1]))
        expected = reference.logits_with(parameters, rows)[-len(logits) :]
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
