"""Is what was written equal to the checkpoint? Checked before a bundle is published.

The rule is `verified_rule`, as of `verify`, whose work whole-model figures (logits, answers) are.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import onnx
import torch

from tinyllava_edge.errors import ExportError
from tinyllava_edge.manifest import EMBEDDINGS, PIXELS
from tinyllava_edge.metrics import feature_figures, nmse
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.precisions import FLOAT16_LIMIT, FLOAT16_MAX, PRECISIONS, ROUNDED
from tinyllava_edge.reference_tensors import ReferenceTensors
from tinyllava_edge.verified_rule import StoredTensor, features_fault

from .gguf_arch import TensorRule
from .language_gguf import LanguageSource, OnProgress, no_progress
from .onnx_file import TOWER_OUTPUT, open_session, opened_with
from .quantize import block_size
from .rounding import evaluate_rounded, measure_ranges

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class VisionTrial:
    """Pictures, and what torch makes of them.

    Attributes:
        pixels: [pictures, 3, h, w].
        tower: [pictures, tokens, vision hidden].
        embeddings: [pictures, tokens, hidden].
        connector: torch's, from features such as `tower` to embeddings.
    """

    pixels: Floats
    tower: Floats
    embeddings: Floats
    connector: torch.nn.Module

    def embed(self, features: Floats) -> Floats:
        """What torch's connector makes of a graph's own features."""
        with torch.no_grad():
            rows: Floats = self.connector(torch.from_numpy(features)).numpy()
        return rows


@torch.no_grad()
def vision_trial(model: TinyLlava, pixels: Floats) -> VisionTrial:
    """Pictures as torch sees them."""
    tower = model.vision_tower(torch.from_numpy(pixels))
    embeddings = model.connector(tower).numpy()
    return VisionTrial(pixels=pixels, tower=tower.numpy(), embeddings=embeddings, connector=model.connector)


def reference_trial(model: TinyLlava, reference: ReferenceTensors) -> VisionTrial:
    """The reference pictures and one of noise."""
    noise = 2 * torch.rand(reference.pixels[:1].shape, generator=torch.Generator().manual_seed(0)) - 1
    of_noise = vision_trial(model, noise.numpy())
    return VisionTrial(
        pixels=np.concatenate([reference.pixels, of_noise.pixels]),
        tower=np.concatenate([reference.tower, of_noise.tower]),
        embeddings=np.concatenate([reference.embeddings, of_noise.embeddings]),
        connector=model.connector,
    )


def check_vision(path: Path, precision: str, trial: VisionTrial) -> dict[str, Any]:
    """Run a written graph on ONNX Runtime's CPU provider against torch's features and embeddings.

    Returns:
        figures of the embeddings, and `tower`: those of the features.

    Raises:
        ExportError: it is too far off.
    """
    (actual,) = open_session(path).run([EMBEDDINGS], {PIXELS: trial.pixels})
    with opened_with(path, TOWER_OUTPUT) as session:
        features = np.asarray(session.run([TOWER_OUTPUT], {PIXELS: trial.pixels})[0], dtype=np.float32)
    tower = feature_figures(trial.tower, features)
    connector = feature_figures(trial.embeddings, np.asarray(actual))
    if PRECISIONS[precision].alone:
        is_whole = features.shape == trial.tower.shape
        connector["connector_nmse"] = _worst_nmse(trial.embed(features), actual) if is_whole else np.nan
    for stage, figures in (("tower", tower), ("connector", connector)):
        if fault := features_fault(stage, precision, figures):
            raise ExportError(
                f"vision {precision}: {path.name} is not equal to the checkpoint: {stage}: {fault}."
            )
    return {**_for_json(connector), "tower": _for_json(tower)}


def _worst_nmse(expected: Floats, actual: Floats) -> float:
    return max(nmse(one, other) for one, other in zip(expected, actual, strict=True))


def check_rounded(proto: onnx.ModelProto, precision: str, trial: VisionTrial) -> dict[str, Any]:
    """Judge a typed graph by an evaluation that rounds every value to its type, against torch.

    Returns:
        rounded: figures of the embeddings; where no runtime here runs it, `tower`: of the features; of
            float16 also the largest value that is stored in it, where, and its margin.

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
    report = {"rounded": _for_json(figures), **report}
    if "cpu" in PRECISIONS[precision].runs_on:  # what is run has its features judged then
        fault = features_fault("connector", precision, {f"{ROUNDED}{k}": v for k, v in figures.items()})
    else:
        tower = feature_figures(trial.tower, evaluate_rounded(proto, trial.pixels, TOWER_OUTPUT))
        report["rounded"]["tower"] = _for_json(tower)
        fault = features_fault("tower", precision, tower) or features_fault("connector", precision, figures)
    if fault:
        raise ExportError(
            f"vision {precision}: rounding every value to its type costs too much: {fault}.{about} "
            "Export --vision fp32."
        )
    return report


def _for_json(figures: dict[str, float]) -> dict[str, float]:
    """JSON has no infinity: 300 dB are said of equal tensors."""
    return {name: min(value, 300.0) for name, value in figures.items()}


def check_language(
    path: Path,
    name: str,
    source: LanguageSource,
    *,
    types: Mapping[str, str] | None = None,
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Read a GGUF file back, undo the conversion and compare every tensor with the checkpoint's.

    The rule is `verified_rule.StoredTensor`.

    Args:
        path: the file.
        name: its type, one of `precisions.LANGUAGE_TYPES`.
        source: what it was made from.
        types: that some of its tensors were asked to have, by their names.
        on_progress: called with the tensors compared, and all that there are.

    Returns:
        counts: number of tensors of each type; fallback: tensors that could not have the type asked for;
        lowest_snr_db and lowest_at: of the worst tensor, or None where none differs.

    Raises:
        ExportError: a tensor is missing, too many, differs, or has another type than was asked for; the
            message names it.
        BundleError: a tensor has a type without a gate.
    """
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    report = _tensor_types(written.values(), name, types or {})
    rules = source.rules()
    for computed, vector in source.computed().items():
        if computed not in written or not np.array_equal(written.pop(computed).data, vector):
            raise ExportError(f"{path.name}: {computed} is missing, or not what config.json gives.")
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


def _tensor_types(
    tensors: Iterable[gguf.ReaderTensor], name: str, types: Mapping[str, str]
) -> dict[str, Any]:
    """Count the types, and list the tensors that `name`, or their own of `types`, could not be applied to."""
    counts: Counter[str] = Counter()
    fallback = []
    for tensor in tensors:
        counts[_type_of(tensor)] += 1
        width, asked = int(tensor.shape[0]), types.get(tensor.name)
        if len(tensor.shape) > 1 and width % block_size(asked or name):
            fallback.append(f"{tensor.name}: {_type_of(tensor)}, width {width}")
        elif asked and asked != _type_of(tensor):
            raise ExportError(f"{name}: {tensor.name} is {_type_of(tensor)}, --tensor-type says {asked}.")
    return {"counts": dict(sorted(counts.items())), "fallback": fallback}


def _compare(tensor: torch.Tensor, stored: gguf.ReaderTensor, rule: TensorRule) -> tuple[float, str]:
    """Signal to noise in dB, infinite where a float type holds all that it can; and what is wrong, or ""."""
    if tensor.shape != rule.shape or rule.shape != tuple(map(int, reversed(stored.shape))):
        return -np.inf, f"shape {tuple(map(int, reversed(stored.shape)))}, expected {tuple(tensor.shape)}"
    kind = stored.tensor_type.name
    held, energy, noise = StoredTensor(kind, _rounded), 0.0, 0.0
    for rows in rule.slices():
        in_file = gguf.quants.dequantize(stored.data[rows], stored.tensor_type).astype(np.float32)
        source = tensor[rows].float().contiguous()
        # A copy: torch wants memory that it may write to.
        restored = rule.restore(torch.from_numpy(in_file.copy()))
        if not restored.isfinite().all():
            largest = float(source.abs().max())
            return -np.inf, f"{kind} makes NaN or infinity of values up to {largest:.3g}; take another type"
        if rule.tolerance:  # going there and back rounds, so what lies in the file is what must be equal
            held.add(rule.convert(source).numpy(), in_file)
            if float((source - restored).abs().max()) > rule.tolerance:
                return -np.inf, f"more than {rule.tolerance:g} off where the conversion is undone"
        else:
            held.add(source.numpy(), restored.contiguous().numpy())
        energy += float(source.double().square().sum())
        noise += float((source.double() - restored.double()).square().sum())
    snr_db = 10 * float(np.log10(max(energy, 1e-300) / noise)) if noise else np.inf
    is_all = not held.fault and kind in ("F32", "F16")
    return np.inf if is_all else snr_db, held.fault


def _rounded(values: Floats, kind: str) -> Floats:
    """Values to a type and back, by the gguf package's own arithmetic."""
    type_ = gguf.GGMLQuantizationType[kind]
    return np.asarray(gguf.quants.dequantize(gguf.quants.quantize(values, type_), type_), dtype=np.float32)
