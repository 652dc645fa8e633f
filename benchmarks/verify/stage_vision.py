"""Ladder stages 5 and 6: the tower's output, tapped inside the ONNX graph, and the embeddings behind it.

Both are fed with the reference's pixels, so that what stage 4 found is not counted again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import Variant
from tinyllava_edge.compute_classes import about, vision_precision
from tinyllava_edge.errors import BundleError
from tinyllava_edge.gates import precision_of
from tinyllava_edge.metrics import feature_figures, nmse, snr_db
from tinyllava_edge.precisions import ROUNDED
from tinyllava_edge.runtimes.registry import RUNTIMES, graph_tap, vision_opener

from .ladder import Ladder, SkippedError, StageResult, judge
from .reference import Reference
from .reference_checkpoint import CheckpointReference

Floats = npt.NDArray[np.float32]
_BATCH = 2  # and one left over, so that both a batch and a single picture are run


def check_tower(ladder: Ladder) -> Iterator[StageResult]:
    """The selected layer's features, at the place in the graph where the connector reads them."""
    if not ladder.reads_onnx:
        raise SkippedError(f"runtime {ladder.runtime} runs no ONNX graph to tap")
    if find_spec("onnx") is None:
        raise SkippedError("needs the package onnx")
    reference, pixels = ladder.reference, _pixels(ladder)
    expected = [reference.tower(index) for index in range(len(pixels))]
    for variant in ladder.vision:
        found = tap_tower(ladder, variant, pixels)
        audit = {}
        if precision_of(variant.name, "tower").stores_float16:
            audit["max_activation"] = _max_activation(ladder, variant, pixels)
        cause = partial(_tower_cause, reference)
        yield _judge_features(ladder, "tower", variant, expected, found, audit, cause)


def check_connector(ladder: Ladder) -> Iterator[StageResult]:
    """Embeddings as the runtime's vision backend gives them."""
    reference, pixels = ladder.reference, _pixels(ladder)
    expected = [reference.embeddings(index) for index in range(len(pixels))]
    has_onnx = ladder.reads_onnx and find_spec("onnx") is not None
    for variant in ladder.vision:
        if not is_run(variant) and not has_onnx:
            reason = f"no runtime here runs {variant.name}, and its evaluation needs the package onnx"
            yield StageResult(stage="connector", variant=variant.name, skipped=reason)
            continue
        precision = precision_of(variant.name)
        found = _embeddings(ladder, variant, pixels)
        features, audit = None, {}
        if has_onnx and isinstance(reference, CheckpointReference):
            features = tap_tower(ladder, variant, pixels)
            if precision.alone:
                audit["connector_nmse"] = _connector_nmse(reference, features, found)
        if has_onnx and precision.is_rounded and is_run(variant):
            rounded = feature_figures(expected, _rounded(ladder, variant, pixels))
            audit |= {f"{ROUNDED}{gate.metric}": rounded[gate.metric] for gate in precision.gates}
        cause = partial(_connector_cause, reference, features)
        yield _judge_features(ladder, "connector", variant, expected, found, audit, cause)


def is_run(variant: Variant) -> bool:
    """Whether a runtime here can compute a variant; the others are evaluated with every value rounded."""
    return variant.status == "verified"


def _embeddings(ladder: Ladder, variant: Variant, pixels: Sequence[Floats]) -> list[Floats]:
    if not is_run(variant):
        return _rounded(ladder, variant, pixels)
    open_vision = vision_opener(RUNTIMES[ladder.runtime][0])
    backend = open_vision(ladder.bundle, ladder.options_of(variant))
    try:
        return _in_batches(backend.encode, pixels)
    finally:
        backend.close()


def _pixels(ladder: Ladder) -> list[Floats]:
    count = min(ladder.num_pictures, len(ladder.reference.pictures))
    return [ladder.reference.pixels(index) for index in range(count)]


def _in_batches(encode: Callable[[Floats], Floats], pixels: Sequence[Floats]) -> list[Floats]:
    """Results of single pictures, in order; the first one alone, the others in batches."""
    starts = [0, *range(1, len(pixels), _BATCH), len(pixels)]
    batches = [encode(np.stack(pixels[a:b])) for a, b in pairwise(starts) if a < b]
    return [row for batch in batches for row in batch]


def _judge_features(
    ladder: Ladder,
    stage: str,
    variant: Variant,
    expected: Sequence[Floats],
    found: Sequence[Floats],
    audit: Mapping[str, float],
    cause: Callable[[int, Floats], str],
) -> StageResult:
    """Worst picture of each metric; `cause` is asked about the picture with the largest error.

    `audit` has what only the graph or the checkpoint can tell, where they are at hand.
    """
    precision = vision_precision(variant.name, ladder.vision_compute)
    gates = ladder.gates(stage, precision)
    of_features = {gate.metric for gate in precision_of(precision).gates}
    unmeasured = [gate.metric for gate in gates if gate.metric not in of_features | audit.keys()]
    detail = f"{len(expected)} pictures"
    if said := about(ladder.vision_compute):
        detail += f"; {said}, gates of {precision}"
    if not is_run(variant):
        detail += "; not run, but evaluated with every value rounded to its type"
    for metric in unmeasured:
        detail += f"; {metric} needs {'--checkpoint' if metric == 'connector_nmse' else 'an ONNX runtime'}"
    errors = [feature_figures([one], [other])["nmse"] for one, other in zip(expected, found, strict=True)]
    worst = int(np.argmax(np.nan_to_num(errors, nan=np.inf)))
    return judge(
        stage,
        variant.name,
        {**feature_figures(expected, found), **audit},
        detail=detail,
        cause=lambda: cause(worst, found[worst]),
        gates=tuple(gate for gate in gates if gate.metric not in unmeasured),
    )


def tap_tower(ladder: Ladder, variant: Variant, pixels: Sequence[Floats]) -> list[Floats]:
    """The value between tower and connector of a bundle's graph."""
    name = ladder.bundle.manifest.vision.tower_output
    if not is_run(variant):
        return _rounded(ladder, variant, pixels, name)
    from tinyllava_edge.export.onnx_file import opened_graph

    open_tap = graph_tap(RUNTIMES[ladder.runtime][0])

    def open_file(path: Path) -> Callable[[Floats], Floats]:  # as the runtime opens it
        return open_tap(path, name, ladder.options.threads)

    def tap(graph: Any) -> None:
        graph.output.extend(value for value in graph.value_info if value.name == name)

    with opened_graph(_graph(ladder, variant), tap, open_file=open_file) as run:
        try:
            rows = _in_batches(run, pixels)
        except Exception as error:  # those of the libraries share no base class
            raise BundleError(
                f"{ladder.bundle.root}: vision {variant.name} cannot be run up to {name!r}, where its tower "
                f"ends, says the manifest ({str(error).splitlines()[0][:200]}). Export the bundle again."
            ) from None
    return rows


def _graph(ladder: Ladder, variant: Variant) -> Any:
    import onnx

    return onnx.load(ladder.bundle.path(variant.files[0]))


def _rounded(
    ladder: Ladder, variant: Variant, pixels: Sequence[Floats], name: str = "embeddings"
) -> list[Floats]:
    """Embeddings, or an inner value, of a bundle's graph with every weight and value rounded to its type."""
    from tinyllava_edge.export.rounding import evaluate_rounded

    return list(evaluate_rounded(_graph(ladder, variant), np.stack(pixels), name))


def _max_activation(ladder: Ladder, variant: Variant, pixels: Sequence[Floats]) -> float:
    """Largest magnitude of any value that is stored in float16, if an overflow of it would do harm."""
    from tinyllava_edge.export.rounding import measure_ranges

    ranges = measure_ranges(_graph(ladder, variant), np.stack(pixels))
    return float(np.max([value.largest for value in ranges if not value.harmless]))


def _tower_cause(reference: Reference, picture: int, found: Floats) -> str:
    """Which known mistake gives these features."""
    expected = reference.tower(picture)
    if not np.isfinite(found).all():
        return "values are not finite: overflow"
    if found.shape == (len(expected) + 1, expected.shape[1]) and _alike(found[1:], expected):
        return f"{len(found)} tokens instead of {len(expected)}: token 0 is kept, the policy drops it"
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    if _alike(found[1:], expected[:-1]):
        return "tokens are shifted by one: token 0 is kept and the last one dropped"
    if isinstance(reference, CheckpointReference):
        states = reference.hidden_states(picture)
        used = reference.config.vision.num_used_layers
        nearest = int(np.argmax([snr_db(state, found) for state in states])) if states else used
        if nearest != used and _alike(found, states[nearest]):
            return f"equal to hidden_states[{nearest}], expected hidden_states[{used}]: wrong feature layer"
    return (
        f"the tower computes something else (SNR {snr_db(expected, found):.1f} dB): weights, GELU, LayerNorm"
    )


def _connector_nmse(
    reference: CheckpointReference, features: Sequence[Floats], found: Sequence[Floats]
) -> float:
    """The connector alone: on the graph's own features, so that the tower's rounding does not hide it."""
    expected = [_run(reference.model.connector, rows) for rows in features]
    if any(one.shape != other.shape for one, other in zip(expected, found, strict=True)):
        return np.nan
    return max(nmse(*pair) for pair in zip(expected, found, strict=True))


def _connector_cause(
    reference: Reference, features: Sequence[Floats] | None, picture: int, found: Floats
) -> str:
    """Which known mistake gives these embeddings."""
    expected = reference.embeddings(picture)
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    if not np.isfinite(found).all():
        return "values are not finite: overflow"
    if isinstance(reference, CheckpointReference):
        rows = features[picture] if features else reference.tower(picture)
        honest = snr_db(_run(reference.model.connector, rows), found)
        for said, connector in _mistaken_connectors(reference.model.connector):
            if snr_db(_run(connector, rows), found) > honest + 20:
                return said
    return f"the connector computes something else (SNR {snr_db(expected, found):.1f} dB)"


def _mistaken_connectors(connector: Any) -> Iterator[tuple[str, Any]]:
    """Connectors with one mistake each, and what to say where one of them explains what was found."""
    from torch import nn

    if any(isinstance(module, nn.GELU) for module in connector.modules()):
        mistaken = deepcopy(connector)
        for module in mistaken.modules():
            if isinstance(module, nn.GELU):
                module.approximate = "tanh"
        yield "GELU is the tanh approximation, the connector needs the exact one (erf)", mistaken
    for name, parameter in connector.named_parameters():
        if parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1]:
            mistaken = deepcopy(connector)
            transposed = mistaken.get_parameter(name)
            transposed.data = transposed.data.T.contiguous()
            yield f"connector.{name} is transposed", mistaken


def _run(connector: Any, features: Floats) -> Floats:
    import torch

    with torch.no_grad():
        rows: Floats = connector(torch.from_numpy(features)[None])[0].numpy()
    return rows


def _alike(found: Floats, expected: Floats) -> bool:
    """Equal but for float16 rounding."""
    return snr_db(expected, found) > 30
