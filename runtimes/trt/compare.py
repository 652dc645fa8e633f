"""What a built engine does on this device: parity, speed, buffers, fusion, and answers where it differs."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np

from tinyllava_edge.bundle import Bundle

from .answers import count_equal_answers
from .binding import TensorRT
from .cache import StoredEngine
from .cudart import Cudart
from .device_parity import DeviceParity, measure_parity
from .fusion import read_fusion
from .record import EngineRecord
from .vision import TensorRTVision

_WARM_UPS, _RUNS = 3, 10
_MEASURED = ("mapped", "buffers_ms", "answers", "answers_equal")  # not always, so the last time's are dropped
Judgement = tuple[str, str, dict[str, float | int | None]]


def compare_engine(
    binding: TensorRT, cuda: Cudart, bundle: Bundle, stored: StoredEngine, largest_batch: int
) -> EngineRecord:
    """The record of an engine with what it does here; nothing is written but compiled kernels.

    Raises:
        BackendError: it does not load, or fails.
        BundleError: the bundle has no reference tensors.
    """

    def opened(mapped: bool | None = None) -> TensorRTVision:
        return TensorRTVision(binding, cuda, stored, bundle.manifest.vision, mapped=mapped)

    facts: dict[str, Any] = {k: v for k, v in stored.record.facts.items() if k not in _MEASURED}
    with closing(opened()) as backend:
        judgement = judge(measure_parity(bundle, backend.encode, largest_batch), stored.record.variant)
        facts |= _held(backend) | _fusion(backend, facts.get("softmax_layers"))
        is_verified = judgement[0] == "verified"
        if is_verified:
            facts["device_ms"] = _measure_ms(bundle, backend)
        elif not judgement[2]["not_finite"]:
            answers = count_equal_answers(bundle, backend.encode)
            facts["answers_equal"] = not isinstance(answers, str) and answers.all_equal
            facts["answers"] = str(answers)
        gpu = cuda.read_gpu()
        choices = is_verified and gpu.integrated and gpu.maps_host_memory
        was_mapped = backend.mapped
    if choices:
        facts |= _faster_buffers(
            lambda: opened(not was_mapped), bundle, stored.record.variant, facts, was_mapped
        )
    status, reason, figures = judgement
    update = {"status": status, "reason": reason, "parity": figures, "facts": facts}
    return stored.record.model_copy(update=update)


def judge(parity: DeviceParity, variant: str) -> Judgement:
    """Status, reason and figures of a comparison."""
    fault = parity.fault(variant)
    status = "refused" if fault else "verified"
    return status, fault or f"equal within the gates ({parity})", parity.to_json()


def _held(backend: TensorRTVision) -> dict[str, Any]:
    return {"memory": asdict(backend.memory), "graph": backend.graph, "device_ms": None}


def _fusion(backend: TensorRTVision, blocks: int | None) -> dict[str, Any]:
    """What the inspector shows; `blocks` is how many the graph has."""
    found = read_fusion(backend.inspect())
    return {"fused_attention": found.fused, "kernels": found.layers, "fusion": found.text(blocks)}


def _faster_buffers(
    other: Callable[[], TensorRTVision], bundle: Bundle, variant: str, facts: dict[str, Any], was_mapped: bool
) -> dict[str, Any]:
    """Mapped or copied buffers, where the GPU shares the main memory: the faster ones that pass."""
    with closing(other()) as backend:
        passes = not measure_parity(bundle, backend.encode).fault(variant)
        ms = _measure_ms(bundle, backend)
        held = {**_held(backend), "device_ms": ms}
    names = ("mapped", "copied") if was_mapped else ("copied", "mapped")
    times = dict(zip(names, (facts["device_ms"], ms), strict=True))
    is_better = passes and ms < facts["device_ms"]
    return {**(held if is_better else {}), "mapped": was_mapped != is_better, "buffers_ms": times}


def _measure_ms(bundle: Bundle, backend: TensorRTVision) -> float:
    """Median time of a picture on the device, copies included."""
    side = bundle.manifest.vision.image_size
    pixels = np.zeros((1, 3, side, side), dtype=np.float32)
    times = []
    for _ in range(_WARM_UPS + _RUNS):
        backend.encode(pixels)
        assert backend.device_ms is not None, "it just ran"
        times.append(backend.device_ms)
    return float(np.median(times[_WARM_UPS:]))
