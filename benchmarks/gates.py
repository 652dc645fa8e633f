"""What each stage of the parity ladder must reach, per variant, as data.

Source: spec/reliability_bench_parity.md, section C2. Calibrated once and then frozen: a gate is loosened only
in a commit of its own, with the noise floor that was measured. The floor is the reference in float32 against
itself in float64 (nano: embeddings NMSE 2.8e-13, logits 5.9e-14; one or two threads give the same bits); a
gate stays at least five times above it. docs/measuring.md has the table, and a test compares the two.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tinyllava_edge.errors import BundleError

STAGES = (
    "weights",
    "metadata",
    "text",
    "pixels",
    "tower",
    "connector",
    "splice",
    "logits",
    "dequantized",
    "teacher_forced",
    "greedy",
)


@dataclass(frozen=True)
class Gate:
    """A bound on one metric: `value <= limit` for "max", `value >= limit` for "min"; NaN never passes."""

    metric: str
    kind: Literal["max", "min"]
    limit: float

    def passes(self, value: float) -> bool:
        """Whether a measured value is within the bound."""
        return value <= self.limit if self.kind == "max" else value >= self.limit


def at_most(metric: str, limit: float) -> Gate:
    """A metric that must not be above `limit`."""
    return Gate(metric, "max", limit)


def at_least(metric: str, limit: float) -> Gate:
    """A metric that must not be below `limit`."""
    return Gate(metric, "min", limit)


def _distribution(mean_kld: float, p99_kld: float, top1: float) -> tuple[Gate, ...]:
    return at_most("mean_kld", mean_kld), at_most("p99_kld", p99_kld), at_least("top1_agreement", top1)


_VISION_STAGES = ("tower", "connector")

# Half the largest float16: an activation may double before it overflows.
FP16_ACTIVATION_LIMIT = 32_752.0

# 1e-8 leaves room for a deep tower: 27 random layers measured 1.0e-10, nano 4e-13.
_VISION_FP32 = (at_most("nmse", 1e-8), at_least("min_token_cosine", 0.99999))
_VISION_FP16 = (at_least("snr_db", 40.0), at_least("min_token_cosine", 0.999))
# bfloat16 keeps 8 bits: a real ViT (DINOv2-S) measured 33 dB in the evaluation that rounds every value.
_VISION_BF16 = (at_least("snr_db", 30.0), at_least("min_token_cosine", 0.997))
# int8: C2 names a cosine, not the worst token's; a real ViT's tokens with outliers are worse than others
# (DINOv2-S: 23 dB, mean .998, worst .97).
_VISION_INT8 = (at_least("snr_db", 20.0), at_least("mean_token_cosine", 0.99))
# ONNX Runtime's CPU provider computes float16 graphs in float32 and hides what a GPU would show: the graph is
# evaluated once more with every value rounded, and the largest magnitude of every value that is stored in
# float16 is measured.
_OVERFLOW_AUDIT = at_most("max_activation", FP16_ACTIVATION_LIMIT)
_ROUNDED_AUDIT = at_least("rounded_snr_db", 40.0)

# A wrong GELU costs nano 4e-10 only, which a gate with room for a deep tower cannot see. The connector alone,
# on the graph's own features, measured 5e-14 (nano) to 2.2e-13 (Q-Former).
_CONNECTOR_ALONE = at_most("connector_nmse", 1e-11)

# Mean and 99 % KL divergence in nats, and how often the most likely token stays the same. Where the table of
# C2 has no row: about three times what llama.cpp's scoreboard lists for Llama-3-8B. nano's mean: Q8_0 4.4e-5,
# Q6_K 1.3e-4, Q5_K_M 5.4e-4, Q4_K_M 2.9e-3, Q3_K_M 1.8e-3, Q2_K 5.4e-3, TQ .62.
_QUANTIZED = {
    "bf16": _distribution(1e-3, 1e-2, 0.98),
    "q8_0": _distribution(5e-3, 0.05, 0.96),
    "q6_k": _distribution(0.015, 0.15, 0.94),
    "q5_k": _distribution(0.03, 0.3, 0.92),
    "q5": _distribution(0.04, 0.4, 0.91),
    "q4_k": _distribution(0.08, 0.8, 0.88),
    "q4": _distribution(0.2, 2.0, 0.80),
    "q3_k": _distribution(0.3, 3.0, 0.75),
    "q2_k": _distribution(1.2, 12.0, 0.50),
    "tq": _distribution(2.0, 16.0, 0.40),
}

# The runtime against torch with the very values that lie in the file: what is left is llama.cpp's rounding of
# activations to 8 bits. Measured, NMSE and mean KL divergence: nano Q8_0 3.6e-5 and 4.1e-5, Q4_K_M 8.3e-5 and
# 1.4e-4; six random families Q8_0 2.9e-4 to 2.3e-3 and 5.1e-4 to 3.6e-3. Five times the largest.
_DEQUANTIZED = (at_most("nmse", 0.012), at_most("mean_kld", 0.02))

# Random weights lose more by Q8_0 than the table allows trained ones (mean KLD .0012 to .0096, top-1 .89 to
# .97). Its values are proven to the bit, its computation by the stage dequantized, so the loss is the
# quantization's own: the runtime may lose this many times what torch loses with the values. Mean KLD
# measured 1.6 to 1.9 times.
TIMES_COST = 3.0
PROVEN = ("q8_0",)

_CLASSES = {
    "tq1_0": "tq",
    "tq2_0": "tq",
    "q5_k_m": "q5_k",
    "q5_k_s": "q5_k",
    "q5_0": "q5",
    "q5_1": "q5",
    "q4_k_m": "q4_k",
    "q4_k_s": "q4_k",
    "q4_0": "q4",
    "q4_1": "q4",
    "iq4_nl": "q4",
    "iq4_xs": "q4",
    "q3_k_s": "q3_k",
    "q3_k_m": "q3_k",
    "q3_k_l": "q3_k",
    "iq3_m": "q3_k",
    "iq3_s": "q3_k",
}

GATES: dict[tuple[str, str], tuple[Gate, ...]] = {
    ("tower", "fp32"): _VISION_FP32,
    ("tower", "fp16"): (*_VISION_FP16, _OVERFLOW_AUDIT),
    ("tower", "bf16"): _VISION_BF16,
    ("tower", "int8"): _VISION_INT8,
    ("tower", "int8_fp16"): (*_VISION_INT8, _OVERFLOW_AUDIT),
    ("connector", "fp32"): (*_VISION_FP32, _CONNECTOR_ALONE),
    ("connector", "fp16"): (*_VISION_FP16, _ROUNDED_AUDIT),
    ("connector", "bf16"): _VISION_BF16,
    ("connector", "int8"): _VISION_INT8,
    ("connector", "int8_fp16"): _VISION_INT8,
    ("splice", "f32"): (at_most("nmse", 1e-8),),
    ("splice", "f16"): (at_least("snr_db", 40.0),),
    ("logits", "f32"): (at_most("nmse", 1e-10),),
    ("logits", "f16"): (at_most("nmse", 1e-4),),
    ("teacher_forced", "f32"): _distribution(1e-6, 1e-5, 0.995),
    ("teacher_forced", "f16"): _distribution(1e-3, 1e-2, 0.99),
}

# Signal to noise of a dequantized tensor, by its ggml type: some 6 dB (a bit) under nano's worst tensor. That
# is BF16 55.4, Q8_0 45.4, Q6_K 35.0, Q5_K 28.8, Q5_1 28.4, Q5_0 27.4, Q4_K 22.9, IQ4 22.3, Q4_1 22.1, Q4_0
# 21.2, Q3_K 16.4, IQ3_S 15.5, Q2_K 10.5, TQ 1.8. A wrong tensor is near or below 0 dB. F16 must equal the
# rounded source.
TENSOR_SNR_DB = {
    "F32": float("inf"),
    "F16": float("inf"),
    "BF16": 49.0,
    "Q8_0": 39.0,
    "Q6_K": 29.0,
    "Q5_K": 23.0,
    "Q5_1": 22.0,
    "Q5_0": 21.0,
    "Q4_K": 17.0,
    "IQ4_NL": 16.0,
    "IQ4_XS": 16.0,
    "Q4_1": 16.0,
    "Q4_0": 15.0,
    "Q3_K": 10.0,
    "IQ3_S": 9.0,
    "Q2_K": 5.0,
    "TQ2_0": 1.0,  # all zeros would be 0 dB
    "TQ1_0": 1.0,
}

# Roundings that are the gguf package's own arithmetic to the bit, so that no damage is tolerated (Q8_0: every
# tensor of seven models measured equal). K-quants have none there.
EXACT_TYPES = ("F32", "F16", "Q8_0")

# llama.cpp computes these families' GELU from a table of float16 values, in every variant: measured on golden
# checkpoints Phi 1.1e-7, Gemma 1.7e-7.
_GELU_TABLE = ("phi", "gemma")
_LOGITS_WITH_GELU_TABLE = (at_most("nmse", 3e-7),)


# A greedy answer may leave the reference's where two tokens are as good as each other: where their margin is
# below twice the largest error of a logit. The run measures that error, and this caps it. nano's largest:
# f32 6.7e-5, f16 4.3e-3 (with fp16 vision 8.4e-3), Q8_0 .20, Q4_K_M .82, Q2_K 2.7, TQ 10; the caps are two to
# five times that, and the others lie between.
_LOGIT_ERROR = {
    "f32": 3e-4,
    "f16": 0.03,
    "bf16": 0.3,
    "q8_0": 0.8,
    "q6_k": 1.2,
    "q5_k": 1.6,
    "q5": 1.8,
    "q4_k": 2.5,
    "q4": 3.0,
    "q3_k": 4.0,
    "q2_k": 6.0,
    "tq": 20.0,
}
_LOGIT_ERROR_WITH_GELU_TABLE = 0.01  # sqrt of 3e-7 over 1e-10, times f32's


def class_of(stage: str, variant: str) -> str:
    """The class of variants whose gates count, such as q4_k for q4_k_m.

    Raises:
        BundleError: the variant has no gates at this stage, so nothing could be said of it.
    """
    found = _CLASSES.get(variant, variant)
    if (stage, found) in GATES or (stage not in _VISION_STAGES and found in _QUANTIZED):
        return found
    known = {name for known_stage, name in GATES if known_stage == stage}
    known |= set() if stage in _VISION_STAGES else {*_QUANTIZED, *_CLASSES}
    raise BundleError(
        f"variant {variant!r} has no gates at stage {stage}. Known: {', '.join(sorted(known))}."
    )


def gates_of(stage: str, variant: str, family: str = "llama") -> tuple[Gate, ...]:
    """The gates of a stage for a variant; empty for logits and rows of text that are quantized.

    Args:
        stage: "tower", "connector", "splice", "logits", "dequantized" or "teacher_forced".
        variant: name of a vision or language variant.
        family: the language model's.

    Raises:
        BundleError: the variant is not known.
    """
    known = class_of(stage, variant)
    if (stage, known) == ("logits", "f32") and family in _GELU_TABLE:
        return _LOGITS_WITH_GELU_TABLE
    if stage == "teacher_forced" and known in _QUANTIZED:
        return _QUANTIZED[known]
    if stage == "dequantized":
        return _DEQUANTIZED
    return GATES.get((stage, known), ())


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


def is_quantized(variant: str) -> bool:
    """Whether a language variant has a dequantized stage: its tensors lost more than float16 does."""
    return _CLASSES.get(variant, variant) in _QUANTIZED


def largest_logit_error(variant: str, family: str = "llama") -> float:
    """The error of a logit beyond which a greedy answer is never excused; `Raises` as `gates_of`."""
    known = class_of("teacher_forced", variant)
    table = known == "f32" and family in _GELU_TABLE
    return _LOGIT_ERROR_WITH_GELU_TABLE if table else _LOGIT_ERROR[known]


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


def all_gates() -> Iterator[tuple[str, str, Gate]]:
    """Every (stage, variant, gate), for the documentation and its test."""
    for (stage, variant), gates in GATES.items():
        yield from ((stage, variant, gate) for gate in gates)
    yield from (("dequantized", "all that are quantized", gate) for gate in _DEQUANTIZED)
    for variant, gates in _QUANTIZED.items():
        yield from (("teacher_forced", variant, gate) for gate in gates)
