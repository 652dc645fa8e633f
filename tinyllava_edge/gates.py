"""What each stage of the parity ladder must reach, per variant.

The numbers are in `precisions.py`, by the name of a precision, language type or tensor type; here is which of
them count.
"""

from collections.abc import Mapping
from typing import TypeVar

from tinyllava_edge.bounds import Gate, at_least, at_most
from tinyllava_edge.checkpoint.families import FAMILIES
from tinyllava_edge.compute_classes import COMPUTED_CLASSES, FLOAT32_CPU, ComputeClass
from tinyllava_edge.errors import BundleError
from tinyllava_edge.precisions import (
    ALL_LANGUAGE_TYPES,
    LANGUAGE_CLASSES,
    PRECISIONS,
    TENSOR_SNR_DB,
    LanguageClass,
    Precision,
)

STAGES = (
    "weights", "metadata", "text", "pixels", "tower", "connector", "splice", "logits", "dequantized",
    "teacher_forced", "greedy",
)  # fmt: skip
Entry = TypeVar("Entry")

# Random weights lose more by Q8_0 than the table allows trained ones (mean KLD .0012 to .0096, top-1 .89 to
# .97). Its values are proven to the bit, its computation by the stage dequantized, so the loss is the
# quantization's own: the runtime may lose this many times what torch loses with the values. Mean KLD
# measured 1.6 to 1.9 times, and 3.06 of SmolLM2-135M, whose activations have outliers.
TIMES_COST = 4.0
PROVEN = ("q8_0", "ov_int8", "ov_int4")

# Where llama.cpp computes GELU from a table of float16 values, in every variant: measured on golden
# checkpoints Phi 1.1e-7, Gemma 1.7e-7.
_LOGITS_WITH_GELU_TABLE = (at_most("nmse", 3e-7),)
_LOGIT_ERROR_WITH_GELU_TABLE = 0.01  # sqrt of 3e-7 over 1e-10, times f32's


def precision_of(variant: str, stage: str = "connector") -> Precision:
    """The facts of a vision variant.

    Raises:
        BundleError: the variant is not known, so nothing could be said of it.
    """
    return _entry(PRECISIONS, stage, variant)


def language_class_of(
    variant: str, stage: str = "teacher_forced", compute: ComputeClass = FLOAT32_CPU
) -> LanguageClass:
    """The facts of a language variant's class, where it is computed; `Raises` as `precision_of`."""
    known = _entry(ALL_LANGUAGE_TYPES, stage, variant)
    return COMPUTED_CLASSES.get((compute, known), LANGUAGE_CLASSES[known])


def _entry(table: Mapping[str, Entry], stage: str, variant: str) -> Entry:
    if variant not in table:
        raise BundleError(f"variant {variant!r} has no gates at stage {stage}. Known: {', '.join(table)}.")
    return table[variant]


def gates_of(
    stage: str, variant: str, family: str = "llama", compute: ComputeClass = FLOAT32_CPU
) -> tuple[Gate, ...]:
    """The gates of a stage for a variant; empty for logits and rows of text that are quantized.

    Args:
        stage: "tower", "connector", "splice", "logits", "dequantized" or "teacher_forced".
        variant: name of a vision or language variant.
        family: the language model's.
        compute: what computes the language model's products; a GPU's table of GELU is exact.

    Raises:
        BundleError: the variant is not known.
    """
    if stage in ("tower", "connector"):
        return precision_of(variant, stage).gates_at(stage)
    known = language_class_of(variant, stage, compute)
    if (stage, variant) == ("logits", "f32") and _has_gelu_table(family) and compute == FLOAT32_CPU:
        return _LOGITS_WITH_GELU_TABLE
    return known.gates[stage]


def widened(gates: tuple[Gate, ...], cost: Mapping[str, float]) -> tuple[Gate, ...]:
    """Gates of teacher_forced, none tighter than `TIMES_COST` what torch itself loses with the file's values.

    Args:
        gates: the table's.
        cost: metric -> torch with these values against torch with the checkpoint's.
    """
    return tuple(
        at_most(gate.metric, max(gate.limit, TIMES_COST * cost[gate.metric]))
        if gate.kind == "max"
        else at_least(gate.metric, min(gate.limit, 1 - TIMES_COST * (1 - cost[gate.metric])))
        for gate in gates
    )


def largest_logit_error(variant: str, family: str = "llama", compute: ComputeClass = FLOAT32_CPU) -> float:
    """The error of a logit beyond which a greedy answer is never excused; `Raises` as `gates_of`."""
    known = language_class_of(variant, compute=compute)
    table = variant == "f32" and _has_gelu_table(family) and compute == FLOAT32_CPU
    return _LOGIT_ERROR_WITH_GELU_TABLE if table else known.logit_error


def least_snr_db(tensor_type: str) -> float:
    """The gate of a dequantized tensor.

    Raises:
        BundleError: a type without a gate.
    """
    if tensor_type not in TENSOR_SNR_DB:
        raise BundleError(
            f"tensors of type {tensor_type} have no gate. Known types: {', '.join(TENSOR_SNR_DB)}."
        )
    return TENSOR_SNR_DB[tensor_type]


def _has_gelu_table(family: str) -> bool:
    return family in FAMILIES and FAMILIES[family].float16_gelu
