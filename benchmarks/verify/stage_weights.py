"""Ladder stage 1: the values that lie in the language model's files, against the checkpoint's tensors.

Names come from the gguf package's own table, and RoPE's row order is restated here, so that the exporter is
not its own judge. The vision graph's weights are judged by what they compute (stages 5 and 6).
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bounds import at_most
from tinyllava_edge.bundle import Variant
from tinyllava_edge.checkpoint.config import LanguageConfig
from tinyllava_edge.errors import BundleError
from tinyllava_edge.metrics import snr_db
from tinyllava_edge.verified_rule import StoredTensor

from .ladder import Ladder, StageResult, judge
from .language_files import is_ir, read_tensors, rounder
from .reference_checkpoint import CheckpointReference

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
_ROPE_DIVISORS = "rope_freqs.weight"
_FUSED_GATE_AND_UP = re.compile(r"transformer\.layers\.(?P<layer>\d+)\.ffn\.proj_1\.weight")  # OpenELM


def check_weights(ladder: Ladder) -> Iterator[StageResult]:
    """Every tensor of the language model is in the file, with its values, and nothing else is."""
    expected = _expected_tensors(ladder.file_reference(), ladder.reads_language)
    for variant in ladder.language:
        yield _check_tensors(variant, language_path(ladder, variant), expected)


def language_path(ladder: Ladder, variant: Variant) -> Path:
    """The file of a language variant.

    Raises:
        BundleError: the runtime reads files of another kind.
    """
    if variant.target != ladder.reads_language:
        raise BundleError(
            f"language variant {variant.name} is {variant.target}; runtime {ladder.runtime} reads "
            f"{ladder.reads_language}."
        )
    return ladder.bundle.path(variant.files[0])


def _expected_tensors(reference: CheckpointReference, target: str) -> dict[str, Floats]:
    """The checkpoint's tensors; for GGUF in the order of rows that llama.cpp wants, by their names there."""
    config = reference.config.language
    found: dict[str, Floats] = {}
    if target == "openvino":
        parameters = reference.model.language_model.named_parameters()
        return {name: parameter.detach().numpy() for name, parameter in parameters}
    # A tied head is listed once here, and llama.cpp takes the embedding for it.
    for name, parameter in reference.model.language_model.named_parameters():
        names = _names_in_file(name, config)
        values = _as_in_file(name, parameter.detach().numpy(), config)
        found.update(zip(names, np.split(values, len(names)), strict=True))
    if config.rope_scaling is not None and config.rope_scaling["rope_type"] == "llama3":
        found[_ROPE_DIVISORS] = _rope_divisors(reference)
    return found


def _rope_divisors(reference: CheckpointReference) -> Floats:
    """What transformers divides each frequency by, from the frequencies that it uses."""
    config, model = reference.config.language, reference.model.language_model
    used = dict(model.named_buffers())["model.rotary_emb.inv_freq"].double().numpy()
    plain = config.rope_theta ** (-np.arange(0, config.rotary_dim, 2) / config.rotary_dim)
    return np.asarray(plain / used, dtype=np.float32)


def _names_in_file(name: str, config: LanguageConfig) -> list[str]:
    """The tensors of the file, in order, that together are one of transformers."""
    from .gguf_files import tensor_namer

    if match := _FUSED_GATE_AND_UP.fullmatch(name):
        return [f"blk.{match['layer']}.ffn_{part}.weight" for part in ("gate", "up")]
    return [tensor_namer(config.family.llamacpp, config.num_hidden_layers)(name)]


def _as_in_file(name: str, values: Floats, config: LanguageConfig) -> Floats:
    """What llama.cpp expects of a tensor of transformers.

    Llama's RoPE turns neighbouring rows (0,1) of q and k there, and (i, i + half a head) in transformers.
    Gemma's norms multiply by 1 + weight in transformers, and by weight there.
    """
    if _is_gemma_norm(name, config):
        return values + 1
    rows = _rows_in_file(name, config)
    return values if rows is None else values[rows]


def _as_in_checkpoint(name: str, values: Floats, config: LanguageConfig) -> Floats:
    """The inverse of `_as_in_file`."""
    if _is_gemma_norm(name, config):
        return values - 1
    rows = _rows_in_file(name, config)
    return values if rows is None else values[np.argsort(rows)]


def _is_gemma_norm(name: str, config: LanguageConfig) -> bool:
    return config.family.llamacpp in ("gemma", "gemma2") and name.endswith("norm.weight")


def _rows_in_file(name: str, config: LanguageConfig) -> list[int] | None:
    """Which row of transformers each row of the file is; None where they are the same."""
    if config.family.llamacpp not in ("llama", "smollm3"):
        return None
    counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = counts.get(name.split(".")[-2])
    if heads is None:
        return None
    half = config.head_dim // 2
    in_head = [part * half + index for index in range(half) for part in (0, 1)]
    return [head * config.head_dim + row for head in range(heads) for row in in_head]


def dequantized_parameters(reference: CheckpointReference, path: Path) -> dict[str, "torch.Tensor"]:
    """Parameters of the reference's language model with the values that lie in a file.

    Raises:
        BundleError: a tensor is not in the file, or has another shape.
    """
    import torch

    config = reference.config.language
    in_file = {name: values for name, _, values in read_tensors(path)}
    found: dict[str, torch.Tensor] = {}
    for name, parameter in reference.model.language_model.named_parameters():
        names = [name] if is_ir(path) else _names_in_file(name, config)
        if missing := [each for each in names if each not in in_file]:
            raise BundleError(f"{path} has no tensor {missing[0]}. Export again.")
        values = np.concatenate([in_file.pop(each) for each in names])
        if values.shape != parameter.shape:
            shapes = f"{values.shape}, expected {tuple(parameter.shape)}"
            raise BundleError(f"{path}: {', '.join(names)} has shape {shapes}. Export again.")
        own = values if is_ir(path) else _as_in_checkpoint(name, values, config)
        found[name] = torch.from_numpy(own)
    return found


@dataclass
class _Comparison:
    """The tensors of one file against the expected ones."""

    types: Counter[str] = field(default_factory=Counter)
    worst_snr_db: float = float("inf")
    wrong: dict[str, Floats] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)


def _check_tensors(variant: Variant, path: Path, expected: Mapping[str, Floats]) -> StageResult:
    found = _Comparison(missing=set(expected))
    for name, kind, values in read_tensors(path):
        found.types[kind] += 1
        if name not in expected:
            found.extra.append(name)
            continue
        found.missing.discard(name)
        right = expected[name]
        if name == _ROPE_DIVISORS and values.shape == right.shape and np.allclose(values, right, rtol=1e-6):
            right = values  # the frequencies are float32 in transformers
        if values.shape != right.shape:
            found.wrong[name] = values
            continue
        held = StoredTensor(kind, rounder(path))
        held.add(right, values)
        found.worst_snr_db = min(found.worst_snr_db, held.snr_db)
        if held.fault:
            found.wrong[name] = values
    return judge(
        "weights",
        variant.name,
        {
            "wrong_tensors": len(found.wrong),
            "missing_tensors": len(found.missing),
            "extra_tensors": len(found.extra),
            "worst_snr_db": found.worst_snr_db,
        },
        detail=f"{len(expected)} tensors, {', '.join(f'{n} {kind}' for kind, n in found.types.items())}",
        cause=lambda: _weights_cause(found, expected),
        gates=(at_most("wrong_tensors", 0), at_most("missing_tensors", 0), at_most("extra_tensors", 0)),
    )


def _weights_cause(found: _Comparison, expected: Mapping[str, Floats]) -> str:
    if found.missing or found.extra:
        return f"tensors missing: {sorted(found.missing)[:3]}, not expected: {found.extra[:3]}"
    name, values = next(iter(found.wrong.items()))
    cause = _not_finite(values, expected[name]) or _tensor_cause(name, values, expected)
    return f"{name}: {cause} ({len(found.wrong)} tensors are wrong)"


def _not_finite(values: Floats, right: Floats) -> str:
    """What is said of NaN in the file; such values are no quantization's work. "" where there are none."""
    if np.isfinite(values).all():
        return ""
    return (
        f"{np.count_nonzero(~np.isfinite(values))} values in the file are NaN or infinite, the checkpoint's "
        f"are finite, {np.abs(right).max():.3g} at most: the file is damaged, or its type has no such value"
    )


def _tensor_cause(name: str, values: Floats, expected: Mapping[str, Floats]) -> str:
    """Which known mistake gives these values."""
    right = expected[name]
    if values.shape != right.shape:
        transposed = " (transposed)" if values.shape == right.shape[::-1] else ""
        return f"shape {values.shape}, expected {right.shape}{transposed}"
    if values.ndim == 2 and values.shape == values.shape[::-1] and _alike(values.T, right):
        return "the weight is transposed"
    layer = name.rsplit(".", 2)[0]
    for other, candidate in expected.items():
        if other != name and other.startswith(layer) and candidate.shape == values.shape:
            if _alike(values, candidate):
                return f"holds the values of {other}: the two are swapped"
            if "attn" in other and "attn" in name and _alike(_sorted_rows(values), _sorted_rows(candidate)):
                return f"holds the rows of {other}: the two are swapped"
    if not _alike(values, right) and _alike(_sorted_rows(values), _sorted_rows(right)):
        return "the rows are in another order: wrong RoPE permutation"
    return f"the values differ (SNR {snr_db(right, values):.1f} dB)"


def _sorted_rows(values: Floats) -> Floats:
    """Rows in an order that does not depend on the one they are in."""
    rows = values.reshape(len(values), -1)
    sorted_rows: Floats = rows[np.argsort(rows.sum(axis=1))]
    return sorted_rows


def _alike(values: Floats, candidate: Floats) -> bool:
    """Equal but for what a quantization may change; a wrong tensor has an SNR near or below 0 dB."""
    return snr_db(candidate, values) > 10
