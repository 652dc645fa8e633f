"""Each precision of the vision graph: how it is made, and what it is held against before it is published."""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from tinyllava_edge.manifest import EMBEDDINGS, PIXELS
from tinyllava_edge.metrics import feature_figures
from tinyllava_edge.precisions import PRECISIONS, budget_name

from . import int8
from .onnx_file import TOWER_OUTPUT, give_also, opened_graph, write_vision_graph
from .parity import VisionTrial, check_rounded, check_vision
from .precision import Island, find_islands, to_bfloat16, to_float16
from .rounding import Floats, ValueRange, measure_ranges

Status = Literal["verified", "built, not run"]


@dataclass
class VisionSource:
    """What every precision is made from.

    Attributes:
        graph: float32, as traced.
        trial: pictures that no precision is fitted to, with torch's embeddings.
        calibration: pixels [pictures, 3, h, w].
        budget: of visual tokens, where it is not the largest.
    """

    graph: onnx.ModelProto
    trial: VisionTrial
    calibration: Floats
    budget: int | None = None

    def name_of(self, precision: str) -> str:
        """The variant's name."""
        return precision if self.budget is None else budget_name(precision, self.budget)

    @cached_property
    def ranges(self) -> list[ValueRange]:
        """How large every value gets, on all the pictures there are."""
        return measure_ranges(self.graph, np.concatenate([self.calibration, self.trial.pixels]))

    @cached_property
    def islands(self) -> tuple[Island, ...]:
        """What stays in float32 where the rest is float16."""
        return find_islands(self.graph, self.ranges)

    @cached_property
    def linear_inputs(self) -> dict[str, int8.InputRange]:
        """What int8 is fitted to."""
        return int8.measure_inputs(self.graph, self.calibration)

    @cached_property
    def calibrated(self) -> tuple[Floats, Floats]:
        """The tower's values and the embeddings, in float32, of the pictures that int8 is fitted to."""
        return _evaluate(self.graph, self.calibration)


Built = tuple[onnx.ModelProto, dict[str, Any]]  # a graph, and what its making decided


def write_variant(
    name: str, path: Path, source: VisionSource, beside: Path | None = None
) -> tuple[list[Path], Status, dict[str, Any]]:
    """Write one of `precisions.PRECISIONS` and hold it against torch; `beside` as of `write_vision_graph`.

    Returns:
        its files, what it was found to be, and the report that goes to `parity/export.json`.

    Raises:
        ExportError: it cannot be made, or is too far from torch.
    """
    (proto, report), precision = BUILDERS[name](source), PRECISIONS[name]
    files = write_vision_graph(path, proto, beside)
    if precision.is_rounded:
        report |= check_rounded(proto, name, source.trial)
    if "cpu" not in precision.runs_on:
        return files, "built, not run", report
    del proto
    report["onnxruntime"] = check_vision(files[0], name, source.trial)
    return files, "verified", report


def _float16(source: VisionSource) -> Built:
    return to_float16(source.graph, source.islands), _islands(source)


def _int8(source: VisionSource) -> Built:
    proto, kept = _quantized(source, int8.CPU)
    return proto, _int8_decisions(source, kept)


def _int8_float16(source: VisionSource) -> Built:
    in_islands = {name for island in source.islands for name in island.nodes}
    proto, kept = _quantized(source, int8.TENSORRT, in_islands)
    decisions = {**_int8_decisions(source, kept), **_islands(source)}
    return int8.with_typed_scales(to_float16(proto, source.islands)), decisions


def _quantized(
    source: VisionSource, scheme: int8.Scheme, overflowing: Collection[str] = ()
) -> tuple[onnx.ModelProto, list[str]]:
    """The float32 graph in int8, and the layers that are not: no more than its accuracy asks for."""
    tried = None
    for bar_db in int8.INPUT_BARS_DB:
        kept = int8.kept_layers(source.graph, source.linear_inputs, scheme, overflowing, bar_db)
        if kept == tried:
            continue
        tried = kept
        proto = int8.to_int8(source.graph, source.linear_inputs, scheme, kept)
        found = _evaluate(proto, source.calibration)
        figures = [feature_figures(*pair) for pair in zip(source.calibrated, found, strict=True)]
        if min(each["snr_db"] for each in figures) >= int8.LEAST_SNR_DB:
            break
    return proto, kept


def _evaluate(proto: onnx.ModelProto, pixels: Floats) -> tuple[Floats, Floats]:
    ends = [TOWER_OUTPUT, EMBEDDINGS]
    with opened_graph(proto, partial(give_also, TOWER_OUTPUT)) as session:
        found = [session.run(ends, {PIXELS: picture[None]}) for picture in pixels]
    tower, embeddings = (np.concatenate(each) for each in zip(*found, strict=True))
    return tower, embeddings


def _islands(source: VisionSource) -> dict[str, Any]:
    return {"islands": [asdict(island) for island in source.islands]}


def _int8_decisions(source: VisionSource, kept: list[str]) -> dict[str, Any]:
    return {
        "calibration_pictures": len(source.calibration),
        "linear_layers": len(int8.linear_layers(source.graph.graph)),
        "kept_layers": kept,
    }


BUILDERS: dict[str, Callable[[VisionSource], Built]] = {
    "fp32": lambda source: (source.graph, {}),
    "fp16": _float16,
    "bf16": lambda source: (to_bfloat16(source.graph), {}),
    "int8": _int8,
    "int8_fp16": _int8_float16,
}
