"""Is what was written equal to the checkpoint? Checked before a bundle is published.

Gates: spec/reliability_bench_parity.md section C2. Whole-model figures (logits, answers) are `verify`'s work.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import onnx
import torch

from tinyllava_edge.errors import ExportError
from tinyllava_edge.model.vlm import TinyLlava

from .gguf_arch import TensorRule
from .language_gguf import LanguageSource, OnProgress, no_progress
from .onnx_file import EMBEDDINGS, PIXELS, open_session
from .quantize import block_size
from .reference import Reference
from .rounding import FLOAT16_MAX, evaluate_rounded, measure_ranges

Floats = npt.NDArray[np.float32]

# Smallest signal-to-noise ratio in dB of one tensor read back: about 6 dB under what each type reaches on
# normally distributed weights. A wrong row order or a swapped tensor gives about -3 dB.
MIN_SNR_DB = {
    "bf16": 48.0, "q8_0": 39.0, "q6_k": 29.0, "q5_k": 23.0, "q5_1": 22.0, "q5_0": 21.0, "q4_k": 17.0,
    "q4_1": 16.0, "q4_0": 15.0, "iq4_nl": 16.0, "iq4_xs": 16.0, "q3_k": 10.0, "iq3_s": 9.5, "q2_k": 5.0,
    "tq2_0": 0.0, "tq1_0": 0.0, "f16": 60.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How far embeddings are from torch's in float32."""

    nmse: float  # mean squared error over the variance of torch's
    snr_db: float  # energy of torch's over energy of the error
    psnr_db: float
    min_token_cosine: float
    mean_token_cosine: float
    within: float  # fraction inside atol 1e-4 rms + rtol 1e-3

    @classmethod
    def of(cls, expected: Floats, actual: Floats) -> "Figures":
        """Compare two [batch, tokens, hidden]; anything not finite makes NaN, which passes no gate."""
        a, b = expected.astype(np.float64), actual.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            error, energy = np.mean((a - b) ** 2), np.mean(a**2)
            cosine = np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
            limit = 1e-4 * np.sqrt(energy) + 1e-3 * np.abs(a)
            # At most 300 dB, so that equal tensors have a number too; max() would lose a NaN.
            noise = np.maximum(error, 1e-30 * energy + 1e-300)
            return cls(
                nmse=float(error / np.var(a)),
                snr_db=float(10 * np.log10(energy / noise)),
                psnr_db=float(10 * np.log10(np.max(a**2) / noise)),
                min_token_cosine=float(np.min(cosine)),
                mean_token_cosine=float(np.mean(cosine)),
                within=float(np.mean(np.abs(a - b) <= limit)),
            )

    def passes(self, precision: str) -> bool:
        """Whether the gate of a vision precision is passed."""
        if precision == "fp32":
            return self.nmse <= 1e-8 and self.min_token_cosine >= 0.99999 and self.within >= 0.999
        if precision == "fp16":
            return self.snr_db >= 40 and self.min_token_cosine >= 0.999 and self.psnr_db >= 35
        if precision == "bf16":
            return self.snr_db >= 30 and self.min_token_cosine >= 0.997
        assert precision in ("int8", "int8_fp16"), precision
        return self.snr_db >= 20 and self.mean_token_cosine >= 0.99


@dataclass(frozen=True, kw_only=True)
class VisionTrial:
    """Pixels [pictures, 3, h, w], and the embeddings [pictures, tokens, hidden] that torch makes of them."""

    pixels: Floats
    embeddings: Floats


def vision_trial(model: TinyLlava, reference: Reference) -> VisionTrial:
    """The reference pictures and one of noise."""
    noise = 2 * torch.rand(reference.pixels[:1].shape, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        of_noise = model.encode(noise).numpy()
    return VisionTrial(
        pixels=np.concatenate([reference.pixels, noise.numpy()]),
        embeddings=np.concatenate([reference.embeddings, of_noise]),
    )


def check_vision(path: Path, precision: str, trial: VisionTrial) -> dict[str, Any]:
    """Run a written graph on ONNX Runtime's CPU provider against torch's embeddings.

    Raises:
        ExportError: it is too far off.
    """
    (actual,) = open_session(path).run([EMBEDDINGS], {PIXELS: trial.pixels})
    figures = Figures.of(trial.embeddings, np.asarray(actual))
    if not figures.passes(precision):
        raise ExportError(f"vision {precision}: {path.name} is not equal to the checkpoint: {figures}.")
    return asdict(figures)


def check_rounded(proto: onnx.ModelProto, precision: str, trial: VisionTrial) -> dict[str, Any]:
    """Judge a typed graph by an evaluation that rounds every value to its type, against torch's embeddings.

    Returns:
        rounded: figures; of float16 also the largest value that is stored in it, where, and its margin.

    Raises:
        ExportError: a value overflows, or rounding costs too much; the message names the value.
    """
    report: dict[str, Any] = {}
    about = ""
    if precision != "bf16":
        ranges = [value for value in measure_ranges(proto, trial.pixels) if not value.harmless]
        # Where one overflows, what lies behind it is not finite either: so the first one is to blame.
        overflows = [value for value in ranges if not value.largest <= FLOAT16_MAX]
        worst = overflows[0] if overflows else max(ranges, key=lambda value: value.largest)
        about = f" The largest value in float16 is {worst.largest:.6g} at {worst.name}"
        about += f" (margin {worst.margin:.3g})."
        report = {"largest": worst.largest, "largest_at": worst.name, "margin": worst.margin}
        if overflows:
            raise ExportError(
                f"vision {precision}: {worst.name} reaches {worst.largest:.6g}, float16 ends at "
                f"{FLOAT16_MAX:g} (margin {worst.margin:.3g}). Export --vision fp32 or bf16."
            )
    figures = Figures.of(trial.embeddings, evaluate_rounded(proto, trial.pixels))
    if not figures.passes(precision):
        raise ExportError(
            f"vision {precision}: rounding every value to its type costs too much: {figures}.{about} "
            "Export --vision fp32."
        )
    return {"rounded": asdict(figures), **report}


def check_language(
    path: Path, name: str, source: LanguageSource, *, on_progress: OnProgress = no_progress
) -> dict[str, Any]:
    """Read a GGUF file back, undo the conversion and compare every tensor with the checkpoint's.

    float32 must be bit-equal, float16 equal to the rounded source, other types above `MIN_SNR_DB`.

    Args:
        path: the file.
        name: its type, one of `options.LANGUAGE_TYPES`.
        source: what it was made from.
        on_progress: called with the tensors compared, and all that there are.

    Returns:
        counts: number of tensors of each type; fallback: tensors that could not have the type asked for;
        lowest_snr_db and lowest_at: of the worst tensor, or None where none differs.

    Raises:
        ExportError: a tensor is missing, too many, or differs; the message names it.
    """
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    report = _tensor_types(written.values(), name)
    rules = source.rules()
    total = len(rules)
    worst: tuple[float, str | None] = (float("inf"), None)
    for tensor_name, tensor in source.tensors():
        rule = rules.pop(tensor_name)
        stored = written.pop(rule.name, None)
        if stored is None:
            raise ExportError(f"{path.name}: {rule.name} is missing.")
        snr_db = _tensor_snr_db(tensor, stored, rule)
        if not snr_db >= MIN_SNR_DB.get(_type_of(stored), float("inf")):
            raise ExportError(
                f"{path.name}: {rule.name} ({_type_of(stored)}) is not equal to {tensor_name}: "
                f"{snr_db:.1f} dB signal to noise."
            )
        worst = min(worst, (snr_db, rule.name), key=lambda found: found[0])
        on_progress(total - len(rules), total)
    if odd := [*written, *rules]:
        raise ExportError(f"{path.name}: {odd[0]} is in only one of file and checkpoint.")
    report["lowest_snr_db"] = None if worst[1] is None or np.isinf(worst[0]) else worst[0]
    report["lowest_at"] = None if report["lowest_snr_db"] is None else worst[1]
    return report


def _type_of(tensor: gguf.ReaderTensor) -> str:
    return str(tensor.tensor_type.name).lower()


def _tensor_types(tensors: Iterable[gguf.ReaderTensor], name: str) -> dict[str, Any]:
    """Count the types, and list the tensors that `name` could not be applied to."""
    counts: Counter[str] = Counter()
    fallback = []
    for tensor in tensors:
        counts[_type_of(tensor)] += 1
        width = int(tensor.shape[0])
        if len(tensor.shape) > 1 and width % block_size(name):
            fallback.append(f"{tensor.name}: {_type_of(tensor)}, width {width}")
    return {"counts": dict(sorted(counts.items())), "fallback": fallback}


def _tensor_snr_db(tensor: torch.Tensor, stored: gguf.ReaderTensor, rule: TensorRule) -> float:
    """Infinity where the tensor is what its type makes of the source exactly, or within the tolerance."""
    if tensor.shape != rule.shape or rule.shape != tuple(map(int, reversed(stored.shape))):
        return -float("inf")
    kind, is_equal, energy, noise = _type_of(stored), True, 0.0, 0.0
    for rows in rule.slices():
        values = gguf.quants.dequantize(stored.data[rows], stored.tensor_type)
        # A copy: torch wants memory that it may write to.
        actual = rule.restore(torch.from_numpy(np.array(values, dtype=np.float32)))
        expected = tensor[rows].float()
        exact = expected.half().float() if kind == "f16" else expected
        is_equal &= torch.equal(exact, actual) or float((exact - actual).abs().max()) <= rule.tolerance
        energy += float(expected.double().square().sum())
        noise += float((expected.double() - actual.double()).square().sum())
    if is_equal:
        return float("inf")
    if kind in ("f32", "f16"):
        return -float("inf")
    return 10 * float(np.log10(max(energy, 1e-300) / noise))
