"""Is what was written equal to the checkpoint? Checked before a bundle is published.

Gates: docs/sources/measuring.md#gates, as of `verify`, whose work whole-model figures (logits, answers) are.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import onnx
import torch

from tinyllava_edge.bounds import first_fault
from tinyllava_edge.errors import ExportError
from tinyllava_edge.gates import least_snr_db
from tinyllava_edge.manifest import EMBEDDINGS, PIXELS
from tinyllava_edge.metrics import feature_figures
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.precisions import EXACT_TYPES, FLOAT16_LIMIT, FLOAT16_MAX, PRECISIONS
from tinyllava_edge.reference_tensors import ReferenceTensors

from .gguf_arch import TensorRule
from .language_gguf import LanguageSource, OnProgress, no_progress
from .onnx_file import open_session
from .quantize import block_size
from .rounding import evaluate_rounded, measure_ranges

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class VisionTrial:
    """Pixels [pictures, 3, h, w], and the embeddings [pictures, tokens, hidden] that torch makes of them."""

    pixels: Floats
    embeddings: Floats


def vision_trial(model: TinyLlava, reference: ReferenceTensors) -> VisionTrial:
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
    figures = feature_figures(trial.embeddings, np.asarray(actual))
    if fault := first_fault(PRECISIONS[precision].gates, figures):
        raise ExportError(f"vision {precision}: {path.name} is not equal to the checkpoint: {fault}.")
    return _for_json(figures)


def check_rounded(proto: onnx.ModelProto, precision: str, trial: VisionTrial) -> dict[str, Any]:
    """Judge a typed graph by an evaluation that rounds every value to its type, against torch's embeddings.

    Returns:
        rounded: figures; of float16 also the largest value that is stored in it, where, and its margin.

    Raises:
        ExportError: a value passes half of float16's range, or rounding costs too much; the message names
            the value.
    """
    report: dict[str, Any] = {}
    about = ""
    if PRECISIONS[precision].stores_float16:
        ranges = [value for value in measure_ranges(proto, trial.pixels) if not value.harmless]
        # Where one overflows, what lies behind it is not finite either: so the first one is to blame.
        overflows = [value for value in ranges if not value.largest <= FLOAT16_LIMIT]
        worst = overflows[0] if overflows else max(ranges, key=lambda value: value.largest)
        about = f" The largest value in float16 is {worst.largest:.6g} at {worst.name}"
        about += f" (margin {worst.margin:.3g})."
        report = {"largest": worst.largest, "largest_at": worst.name, "margin": worst.margin}
        if overflows:
            raise ExportError(
                f"vision {precision}: {worst.name} reaches {worst.largest:.6g}; float16 ends at "
                f"{FLOAT16_MAX:g}, half of which may be used (margin {worst.margin:.3g}). "
                "Export --vision fp32 or bf16."
            )
    figures = feature_figures(trial.embeddings, evaluate_rounded(proto, trial.pixels))
    if fault := first_fault(PRECISIONS[precision].gates, figures):
        raise ExportError(
            f"vision {precision}: rounding every value to its type costs too much: {fault}.{about} "
            "Export --vision fp32."
        )
    return {"rounded": _for_json(figures), **report}


def _for_json(figures: dict[str, float]) -> dict[str, float]:
    """JSON has no infinity: 300 dB are said of equal tensors."""
    return {name: min(value, 300.0) for name, value in figures.items()}


def check_language(
    path: Path, name: str, source: LanguageSource, *, on_progress: OnProgress = no_progress
) -> dict[str, Any]:
    """Read a GGUF file back, undo the conversion and compare every tensor with the checkpoint's.

    `precisions.EXACT_TYPES` must hold exactly what they make of the source; others `TENSOR_SNR_DB` at least.

    Args:
        path: the file.
        name: its type, one of `precisions.LANGUAGE_TYPES`.
        source: what it was made from.
        on_progress: called with the tensors compared, and all that there are.

    Returns:
        counts: number of tensors of each type; fallback: tensors that could not have the type asked for;
        lowest_snr_db and lowest_at: of the worst tensor, or None where none differs.

    Raises:
        ExportError: a tensor is missing, too many, or differs; the message names it.
        BundleError: a tensor has a type without a gate.
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
        snr_db, fault = _compare(tensor, stored, rule)
        if fault:
            raise ExportError(
                f"{path.name}: {rule.name} ({_type_of(stored)}) is not equal to {tensor_name}: {fault}."
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


def _compare(tensor: torch.Tensor, stored: gguf.ReaderTensor, rule: TensorRule) -> tuple[float, str]:
    """Signal to noise in dB, infinite where a float type holds all that it can; and what is wrong, or ""."""
    if tensor.shape != rule.shape or rule.shape != tuple(map(int, reversed(stored.shape))):
        return -np.inf, f"shape {tuple(map(int, reversed(stored.shape)))}, expected {tuple(tensor.shape)}"
    type_, is_equal, energy, noise = stored.tensor_type, True, 0.0, 0.0
    for rows in rule.slices():
        values = gguf.quants.dequantize(stored.data[rows], type_)
        # A copy: torch wants memory that it may write to.
        actual = rule.restore(torch.from_numpy(np.array(values, dtype=np.float32)))
        expected = tensor[rows].float()
        if type_.name in EXACT_TYPES:
            exact = torch.from_numpy(_rounded(expected.contiguous().numpy(), type_))
            is_equal &= float((exact - actual).abs().max()) <= rule.tolerance
        if not actual.isfinite().all():
            largest = float(expected.abs().max())
            return (
                -np.inf,
                f"{type_.name} makes NaN or infinity of values up to {largest:.3g}; take another type",
            )
        energy += float(expected.double().square().sum())
        noise += float((expected.double() - actual.double()).square().sum())
    snr_db = 10 * float(np.log10(max(energy, 1e-300) / noise)) if noise else np.inf
    if type_.name in EXACT_TYPES:
        fault = "" if is_equal else f"values differ from those rounded to {type_.name} ({snr_db:.1f} dB)"
        return np.inf if is_equal and type_.name in ("F32", "F16") else snr_db, fault
    least = least_snr_db(type_.name)
    return snr_db, "" if snr_db >= least else f"{snr_db:.1f} dB signal to noise, at least {least:g} is asked"


def _rounded(values: Floats, type_: gguf.GGMLQuantizationType) -> Floats:
    """Values to a type and back, by the gguf package's own arithmetic."""
    return np.asarray(gguf.quants.dequantize(gguf.quants.quantize(values, type_), type_), dtype=np.float32)
