"""What TensorRT's parser and builder say -> the error with the next step."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllava_edge.errors import (
    EngineBuildError,
    EngineMemoryError,
    TensorRTError,
    UnsupportedGraphError,
    UnsupportedPrecisionError,
)

from .binding import MessageLog, TensorRT
from .options import EngineOptions

if TYPE_CHECKING:
    import tensorrt as trt

_WORKSPACE = r"within workspace limit|insufficient workspace|requested workspace size"
_MEMORY = r"out of memory|OutOfMemory|bad_alloc|NvMapMemAlloc|cudaMalloc|allocation failed"
# "contains HW-specific datatypes: fp8_e4m3"; "Cannot compile ... (SM75): FP32 GEMM is not supported"
_PRECISION = r"HW-specific datatypes?: *(?P<types>[\w, ]+)|\(SM\d+\): (?P<operation>[\w ]+) is not supported"


def parse_failure(binding: TensorRT, parser: "trt.OnnxParser", path: Path, log: MessageLog) -> TensorRTError:
    """The error of a graph that the parser refused: which node, and why."""
    faults = []
    for index in range(parser.num_errors):
        fault: trt.ParserError = parser.get_error(index)
        node = f"node {fault.node_name()!r} ({fault.node_operator()}): " if fault.node_operator() else ""
        faults.append(f"{node}{' '.join(fault.desc().split())}")
    reason = "; ".join(dict.fromkeys(faults)) or "; ".join(log.errors()) or "no reason given"
    return UnsupportedGraphError(
        f"{path}: {binding.name} cannot read this graph: {reason.rstrip('.')}. Export it again with this "
        "tinyllava-edge, or take --runtime onnxruntime+llamacpp.",
        log.errors(),
    )


def build_failure(
    binding: TensorRT, options: EngineOptions, workspace: int, log: MessageLog
) -> TensorRTError:
    """The error of a build that returned nothing, by what TensorRT said last."""
    said = "\n".join(log.errors())
    if found := re.search(_PRECISION, said):
        sms = f" of SM {', '.join(map(str, options.sms))}" if options.sms else ""
        needed = (found["types"] or found["operation"]).strip()
        return binding.failure(
            UnsupportedPrecisionError,
            f"the graph needs {needed}, which {binding.name} does not have for a GPU{sms}",
            "Build the fp16 variant, or leave that GPU out",
            log,
        )
    kind: type[TensorRTError] = EngineMemoryError
    if re.search(_WORKSPACE, said):
        what = f"a workspace of {workspace >> 20} MiB is too small for this graph"
        advice = "Give a larger --workspace, or a smaller --max-batch"
    elif re.search(_MEMORY, said):
        what = "the memory did not suffice to build the engine"
        advice = "Close other programs, give a smaller --max-batch or --workspace, or add swap while building"
    else:
        kind, what = EngineBuildError, f"{binding.name} did not build the engine"
        advice = "Build another variant with --vision, or take --runtime onnxruntime+llamacpp"
    return binding.failure(kind, what, advice, log)
