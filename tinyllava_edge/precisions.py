"""The precisions that a part may have, and what each may cost, as data that export, build and verify read.

Source: docs/sources/measuring.md#gates. Calibrated once and then frozen: a gate is loosened only in a commit
of its own, with the noise floor that was measured. The floor is the reference in float32 against itself in
float64 (nano: embeddings NMSE 2.8e-13, logits 5.9e-14; one or two threads give the same bits); a gate stays
at least five times above it. docs/measuring.md has the table, and a test compares the two.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tinyllava_edge.bounds import Gate, at_least, at_most

FLOAT16_MAX = 65504.0
# An activation may double, on pictures that were not tried, before it overflows.
FLOAT16_LIMIT = FLOAT16_MAX / 2

Processor = Literal["cpu", "cuda", "tensorrt"]  # ONNX Runtime's providers, and NVIDIA's library
ROUNDED = "rounded_"  # in front of a metric: of the evaluation that rounds every value to its type

# 1e-8 leaves room for a deep tower: 27 random layers measured 1.0e-10, nano 4e-13.
_FP32 = (at_most("nmse", 1e-8), at_least("min_token_cosine", 0.99999), at_least("within", 0.999))
# No bound on psnr_db below snr_db's could ever fail (`metrics.psnr_db`).
_FP16 = (at_least("snr_db", 40.0), at_least("min_token_cosine", 0.999))
# bfloat16 keeps 8 bits: a real ViT (DINOv2-S) measured 33 dB in the evaluation that rounds every value.
_BF16 = (at_least("snr_db", 30.0), at_least("min_token_cosine", 0.997))
# int8: the mean cosine, not the worst token's; a real ViT's tokens with outliers are worse than others
# (DINOv2-S: 23 dB, mean .998, worst .97).
_INT8 = (at_least("snr_db", 20.0), at_least("mean_token_cosine", 0.99))
# A wrong GELU costs nano 4e-10 only, which a gate with room for a deep tower cannot see. The connector alone,
# on the graph's own features, measured 5e-14 (nano) to 2.2e-13 (Q-Former).
_CONNECTOR_ALONE = at_most("connector_nmse", 1e-11)
# The largest magnitude of every value that is stored in float16 and that an overflow would spoil.
_OVERFLOW_AUDIT = at_most("max_activation", FLOAT16_LIMIT)


_BUDGET = re.compile(r"([a-z0-9_]+)-([1-9]\d{0,6})")


@dataclass(frozen=True, kw_only=True)
class Precision:
    """One precision of the vision graph; who builds it registers under the same name.

    Attributes:
        gates: of the tower's features and of the embeddings.
        runs_on: what has kernels for it; where the CPU has none, it is judged by rounding alone.
        stores_float16: values are stored in float16, so how large they get is audited.
        is_rounded: ONNX Runtime's CPU provider does not round as the graph says (it computes float16 in
            float32, but for convolutions on ARM with float16 vectors), which hides what a GPU would show: the
            graph is evaluated once more with every value and sum rounded, and the same gates hold for that.
        alone: gates of the connector on the graph's own features.
    """

    gates: tuple[Gate, ...]
    runs_on: tuple[Processor, ...]
    stores_float16: bool = False
    is_rounded: bool = False
    alone: tuple[Gate, ...] = ()

    def gates_at(self, stage: str) -> tuple[Gate, ...]:
        """The gates at "tower" or "connector", with what only the graph or the checkpoint can tell."""
        if stage == "tower":
            return (*self.gates, _OVERFLOW_AUDIT) if self.stores_float16 else self.gates
        audited = self.gates if self.is_rounded and "cpu" in self.runs_on else ()
        return (*self.gates, *(Gate(ROUNDED + g.metric, g.kind, g.limit) for g in audited), *self.alone)


# Most precise first: the order of a manifest's variants, of which the first is a runtime's default.
# int8: linear layers in int8, the rest float32, for the CPU. int8_fp16: the rest float16, for TensorRT.
PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(gates=_FP32, runs_on=("cpu", "cuda", "tensorrt"), alone=(_CONNECTOR_ALONE,)),
    "fp16": Precision(gates=_FP16, runs_on=("cpu", "cuda", "tensorrt"), stores_float16=True, is_rounded=True),
    "bf16": Precision(gates=_BF16, runs_on=("tensorrt",), is_rounded=True),
    "int8": Precision(gates=_INT8, runs_on=("cpu",)),
    "int8_fp16": Precision(gates=_INT8, runs_on=("tensorrt",), stores_float16=True, is_rounded=True),
}


def budget_name(precision: str, tokens: int) -> str:
    """Name of a vision variant of one of a bundle's smaller budgets of visual tokens."""
    return f"{precision}-{tokens}"


def split_budget(name: str) -> tuple[str, int | None]:
    """Precision and budget of a vision variant; None for the largest one, which no name has."""
    found = _BUDGET.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, None)


@dataclass(frozen=True, kw_only=True)
class LanguageClass:
    """What the language types of one class may cost.

    Attributes:
        gates: by stage of the ladder; of a quantized type, logits and rows of text have none of their own.
        logit_error: a greedy answer may leave the reference's where two tokens are as good as each other:
            where their margin is below twice the largest error of a logit. The run measures that error, and
            this caps it.
    """

    gates: Mapping[str, tuple[Gate, ...]]
    logit_error: float

    @property
    def is_quantized(self) -> bool:
        """Whether there is a stage dequantized: the tensors lost more than float16 does."""
        return "dequantized" in self.gates


# The runtime against torch with the very values that lie in the file: what is left is llama.cpp's rounding of
# activations to 8 bits. Measured, NMSE and mean KL divergence: nano Q8_0 3.6e-5 and 4.1e-5, Q4_K_M 8.3e-5 and
# 1.4e-4; six random families Q8_0 2.9e-4 to 2.3e-3 and 5.1e-4 to 3.6e-3. Five times the largest.
DEQUANTIZED = (at_most("nmse", 0.012), at_most("mean_kld", 0.02))


def _distribution(mean_kld: float, p99_kld: float, top1: float) -> tuple[Gate, ...]:
    return at_most("mean_kld", mean_kld), at_most("p99_kld", p99_kld), at_least("top1_agreement", top1)


def _quantized(mean_kld: float, p99_kld: float, top1: float, *, logit_error: float) -> LanguageClass:
    gates = {
        "splice": (),
        "logits": (),
        "dequantized": DEQUANTIZED,
        "teacher_forced": _distribution(mean_kld, p99_kld, top1),
    }
    return LanguageClass(gates=gates, logit_error=logit_error)


# Mean and 99 % KL divergence in nats, and how often the most likely token stays the same: about three times
# what llama.cpp lists for Llama-3-8B (docs/sources/measuring.md#cost-of-a-quantization). nano's mean: Q8_0
# 4.4e-5, Q6_K 1.3e-4, Q5_K_M 5.4e-4, Q4_K_M 2.9e-3, Q3_K_M 1.8e-3, Q2_K 5.4e-3, TQ .62.
# nano's largest error of a logit: f32 6.7e-5, f16 4.3e-3 (with fp16 vision 8.4e-3), Q8_0 .20, Q4_K_M .82,
# Q2_K 2.7, TQ 10; the caps are two to five times that, and the others lie between.
LANGUAGE_CLASSES: dict[str, LanguageClass] = {
    "f32": LanguageClass(
        gates={
            "splice": (at_most("nmse", 1e-8),),
            "logits": (at_most("nmse", 1e-10),),
            "teacher_forced": _distribution(1e-6, 1e-5, 0.995),
        },
        logit_error=3e-4,
    ),
    "f16": LanguageClass(
        gates={
            "splice": (at_least("snr_db", 40.0),),
            "logits": (at_most("nmse", 1e-4),),
            "teacher_forced": _distribution(1e-3, 1e-2, 0.99),
        },
        logit_error=0.03,
    ),
    "bf16": _quantized(1e-3, 1e-2, 0.98, logit_error=0.3),
    "q8_0": _quantized(5e-3, 0.05, 0.96, logit_error=0.8),
    "q6_k": _quantized(0.015, 0.15, 0.94, logit_error=1.2),
    "q5_k": _quantized(0.03, 0.3, 0.92, logit_error=1.6),
    "q5": _quantized(0.04, 0.4, 0.91, logit_error=1.8),
    "q4_k": _quantized(0.08, 0.8, 0.88, logit_error=2.5),
    "q4": _quantized(0.2, 2.0, 0.80, logit_error=3.0),
    "q3_k": _quantized(0.3, 3.0, 0.75, logit_error=4.0),
    "q2_k": _quantized(1.2, 12.0, 0.50, logit_error=6.0),
    "tq": _quantized(2.0, 16.0, 0.40, logit_error=20.0),
}

# Names of llama.cpp's file types (enum llama_ftype in llama.h), without LLAMA_FTYPE_MOSTLY_, most precise
# first, and the class whose gates count.
LANGUAGE_TYPES: dict[str, str] = {
    "f32": "f32", "f16": "f16", "bf16": "bf16", "q8_0": "q8_0", "q6_k": "q6_k",
    "q5_k_m": "q5_k", "q5_1": "q5", "q5_k_s": "q5_k", "q5_0": "q5",
    "q4_k_m": "q4_k", "q4_1": "q4", "q4_k_s": "q4_k", "iq4_nl": "q4", "iq4_xs": "q4", "q4_0": "q4",
    "q3_k_l": "q3_k", "iq3_m": "q3_k", "q3_k_m": "q3_k", "iq3_s": "q3_k", "q3_k_s": "q3_k",
    "q2_k": "q2_k", "tq2_0": "tq", "tq1_0": "tq",
}  # fmt: skip

# Of OpenVINO's graphs, most precise first: matrices in float, or in integers with a float16 scale for 32
# columns (embedding and head of ov_int4 are ov_int8's), and the class whose gates count.
OPENVINO_TYPES: dict[str, str] = {"ov_f32": "f32", "ov_f16": "f16", "ov_int8": "q8_0", "ov_int4": "q4"}
ALL_LANGUAGE_TYPES = {**LANGUAGE_TYPES, **OPENVINO_TYPES}

# Signal to noise of a dequantized tensor, by its ggml type: some 6 dB (a bit) under nano's worst tensor. That
# is BF16 55.4, Q8_0 45.4, Q6_K 35.0, Q5_K 28.8, Q5_1 28.4, Q5_0 27.4, Q4_K 22.9, IQ4 22.3, Q4_1 22.1, Q4_0
# 21.2, Q3_K 16.4, IQ3_S 15.5, Q2_K 10.5, TQ 1.8. A wrong tensor is near or below 0 dB, and one of zeros is 0.
TENSOR_SNR_DB = {
    "F32": float("inf"), "F16": float("inf"), "BF16": 49.0, "Q8_0": 39.0, "Q6_K": 29.0,
    "Q5_K": 23.0, "Q5_1": 22.0, "Q5_0": 21.0,
    "Q4_K": 17.0, "IQ4_NL": 16.0, "IQ4_XS": 16.0, "Q4_1": 16.0, "Q4_0": 15.0,
    "Q3_K": 10.0, "IQ3_S": 9.5, "Q2_K": 5.0, "TQ2_0": 1.0, "TQ1_0": 1.0,
}  # fmt: skip

# Types that must be what the gguf package's own arithmetic makes of the source, to the bit, so that no damage
# is tolerated (Q8_0: every tensor of seven models measured equal). K-quants have none there.
# OpenVINO's are our own (`ir_tensors.rounded`).
EXACT_TYPES = ("F32", "F16", "Q8_0", *(name.upper() for name in OPENVINO_TYPES))


def matrix_types(variant: str) -> set[str]:
    """Types that a variant's matrices may have: llama.cpp mixes its own with more precise ones, never F32."""
    if variant in ("f32", "f16"):
        return {variant.upper()}
    base = "IQ3_S" if variant == "iq3_m" else re.sub("(?<=_K)_[SML]$", "", variant.upper())
    return {kind for kind, snr in TENSOR_SNR_DB.items() if snr >= TENSOR_SNR_DB[base]} - {"F32"}
