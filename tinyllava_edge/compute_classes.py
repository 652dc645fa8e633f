"""What computes a product decides how it rounds: classes of compute units, and the gates that differ by them.

Source: docs/sources/measuring.md#products-on-a-gpu. The gates were set before any GPU ran: they are about
five times what `python -m tools.compute_gates` emulates on nano and the golden checkpoints, SmolLM2-135M
within that (benchmarks/results/compute_gates.md; its float16 sums were not emulated). A CPU's gates are those
of `precisions.py` and are never widened here.
"""

from typing import Literal

from tinyllava_edge.bounds import at_least, at_most
from tinyllava_edge.precisions import LANGUAGE_CLASSES, LANGUAGE_TYPES, LanguageClass, split_budget

ComputeClass = Literal[
    "float32 CPU", "fp16 CPU", "bf16 CPU", "int8 CPU", "float32 GPU", "tf32 GPU", "fp16-accumulating GPU"
]
FLOAT32_CPU: ComputeClass = "float32 CPU"
BF16_CPU: ComputeClass = "bf16 CPU"  # factors rounded to bfloat16, sums in float32
# As bf16 CPU, and what is multiplied with integers is rounded to 8 bits in groups of 32, as llama.cpp does.
INT8_CPU: ComputeClass = "int8 CPU"
# Of which no run on hardware stands in this repository.
EMULATED: tuple[ComputeClass, ...] = ("fp16 CPU", "float32 GPU", "tf32 GPU", "fp16-accumulating GPU")


def _wider(
    nmse: float, mean_kld: float, p99_kld: float, top1: float, error: float, like: str
) -> LanguageClass:
    gates = {
        "splice": LANGUAGE_CLASSES[like].gates["splice"],
        "logits": (at_most("nmse", nmse),),
        "teacher_forced": (
            at_most("mean_kld", mean_kld),
            at_most("p99_kld", p99_kld),
            at_least("top1_agreement", top1),
        ),
    }
    return LanguageClass(gates=gates, logit_error=error)


# TF32 keeps 10 bits of a factor, cut off where nobody rounded it. Largest emulated: NMSE 2.5e-5, mean KLD
# 5.9e-5, its 99 % 2.7e-4, top-1 .9875, a logit .30; nano 4.5e-7, 2.1e-6, 2.4e-5, .9984, .031.
_TF32 = {"nmse": 1.3e-4, "mean_kld": 3e-4, "p99_kld": 1.4e-3, "top1": 0.97, "error": 0.6}
# Sums of f16 products rounded to float16 every four products. Largest emulated: NMSE 3.7e-5, mean KLD 6.2e-5,
# its 99 % 2.7e-4, top-1 .984, a logit .19; nano 3.7e-6, 8.2e-6, 5.3e-5, .997, .043.
_FLOAT16_SUMS = {"nmse": 1.9e-4, "mean_kld": 1e-3, "p99_kld": 0.01, "top1": 0.97, "error": 0.6}

# bfloat16 keeps 8 bits of a factor. SmolLM2-135M, int8 in groups of 32: mean KLD 1.2e-3 in float32 and 3.0e-3
# so, its 99 % 8.7e-3 and 1.3e-2; nano f16: NMSE 4.7e-5 behind a tower in bfloat16 alone.
_BF16 = {"nmse": 2e-3, "mean_kld": 5e-3, "p99_kld": 0.05, "top1": 0.95, "error": 0.8}

# (compute class, class of language types) -> what counts there. Types of integers are within their CPU gates
# (dequantized: emulated NMSE 2.8e-3, mean KLD 4.4e-3).
COMPUTED_CLASSES: dict[tuple[ComputeClass, str], LanguageClass] = {
    ("tf32 GPU", "f32"): _wider(**_TF32, like="f32"),
    # f32 behind a vision tower of float16, which has f16's gates.
    ("tf32 GPU", "f16"): _wider(**_FLOAT16_SUMS, like="f16"),
    **{
        (compute, kind): _wider(**_BF16, like="f16")
        for compute in (BF16_CPU, INT8_CPU)
        for kind in ("f32", "f16")
    },
    ("fp16-accumulating GPU", "f16"): _wider(**_FLOAT16_SUMS, like="f16"),
}


def llamacpp_class(language: str, sm: str | None, *, has_float16: bool = False) -> ComputeClass:
    """The class of llama.cpp's products with a language variant.

    Args:
        language: name of the variant.
        sm: compute capability of the GPU ("8.7", "" for one that is not known), or None on the CPU.
        has_float16: whether the CPU build computes with float16 vectors.
    """
    kind = LANGUAGE_TYPES.get(language, language)
    if sm is None:
        return "fp16 CPU" if has_float16 and kind == "f16" else FLOAT32_CPU
    number = float(sm or "8.0")
    if kind == "f16" and number >= 6.0 and number not in (6.1, 7.0):  # 7.0: cuBLAS is asked for float32 sums
        return "fp16-accumulating GPU"
    return "tf32 GPU" if number >= 8.0 else "float32 GPU"


def about(compute: ComputeClass) -> str:
    """A class in a report, with what its gates stand on; "" for the CPU's, which were measured."""
    if compute == FLOAT32_CPU:
        return ""
    return f"{compute}, emulated: no run on hardware backs it" if compute in EMULATED else compute


def vision_precision(variant: str, compute: ComputeClass) -> str:
    """The precision whose gates a vision variant has where it is computed so."""
    precision, _ = split_budget(variant)
    return "bf16" if compute == BF16_CPU and precision in ("fp32", "fp16") else precision
