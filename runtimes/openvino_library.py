"""OpenVINO's CPU plugin: what it is told and what is then read back, its errors, and its end after a fork.

Its defaults differ by processor (bfloat16 where there are instructions for it, float16 on ARM, a KV cache of
8 bits), so none is left to it. Source: docs/sources/openvino.md#defaults-by-processor.
"""

from pathlib import Path
from typing import Any, NamedTuple

import openvino
from openvino.frontend import FrontEndManager

from tinyllava_edge.compute_classes import BF16_CPU, FLOAT32_CPU, INT8_CPU, ComputeClass
from tinyllava_edge.errors import BackendError

from .access import let_forks_end
from .threads import thread_budget

DEVICE = "CPU"
_READERS = {".onnx": "onnx", ".xml": "ir"}
_PRECISIONS = {FLOAT32_CPU: "f32", BF16_CPU: "bf16", INT8_CPU: "bf16"}
_ACTIVATIONS_GROUP = 32  # values that share a scale where they are rounded to 8 bits


class Compiled(NamedTuple):
    """A model on this processor; `model` keeps what `request` computes with."""

    model: Any
    request: Any


def read_model(path: Path) -> Any:
    """A graph as OpenVINO reads it, which `onnx_check` or `ir_check` has passed.

    Only the reader of its format sees it: `Core.read_model` hands a file to one reader after another
    (docs/sources/openvino.md#readers).

    Raises:
        BackendError: OpenVINO refuses it, in its own words.
    """
    let_forks_end()
    try:
        reader = FrontEndManager().load_by_framework(_READERS[path.suffix])
        return reader.convert(reader.load(str(path)))
    except Exception as error:  # C++'s, which share no base class
        version = openvino.__version__.partition("-")[0]
        raise BackendError(f"{path}: OpenVINO {version} cannot read it ({said(error)}).") from None


def compile_model(
    path: Path,
    model: Any,
    compute: ComputeClass = FLOAT32_CPU,
    *,
    threads: int | None = None,
    **more: Any,
) -> Compiled:
    """A model that `read_model` read, ready to compute.

    Args:
        path: named in an error.
        model: of OpenVINO.
        compute: the class of its products.
        threads: see `thread_budget`.
        more: further properties of the plugin.

    Raises:
        BackendError: OpenVINO refuses it, has no such instructions here, or took another value than asked.
    """
    properties = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[compute],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": _ACTIVATIONS_GROUP if compute == INT8_CPU else 0,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": thread_budget(threads),
        "ENABLE_CPU_PINNING": False,  # where two programs pin to the same cores, both wait
        **more,
    }
    core = openvino.Core()
    check_computes(core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"), compute)
    try:
        compiled = core.compile_model(model, DEVICE, properties)
        found = {name: compiled.get_property(name) for name in properties}
        request = compiled.create_infer_request()
    except Exception as error:  # as above
        raise BackendError(f"{path}: OpenVINO cannot compile it ({said(error)}).") from None
    wrong = {name: found[name] for name, asked in properties.items() if not _is_same(asked, found[name])}
    if wrong:
        raise BackendError(f"{path}: asked OpenVINO for {properties}, it took {wrong}.")
    return Compiled(compiled, request)


def check_computes(capabilities: list[str], compute: ComputeClass) -> None:
    """Refuse products that the processor has no instructions for: OpenVINO would take others.

    Raises:
        BackendError: says which, and what to take.
    """
    if compute in (BF16_CPU, INT8_CPU) and "BF16" not in capabilities:
        raise BackendError(
            "this processor has no bfloat16 products (avx512_bf16 or amx_bf16; tinyllava-edge doctor lists "
            "what it has). Take the runtime without -bf16 and -int8."
        )


def said(error: Exception) -> str:
    """The line of an OpenVINO error that says something: behind those that name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from ", "FrontEnd API failed"))]
    return (telling or lines or [type(error).__name__])[-1].rstrip(".")


def _is_same(asked: Any, found: Any) -> bool:
    """Whether a property is what was asked for; types of values come back as objects."""
    kinds = {"f32": openvino.Type.f32, "bf16": openvino.Type.bf16, "f16": openvino.Type.f16}
    kinds["u8"] = openvino.Type.u8
    return bool(found == kinds.get(asked, asked))
