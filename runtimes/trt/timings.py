"""How long kernels took in earlier builds, TensorRT's own file: a build without it only takes longer."""

from pathlib import Path
from typing import TYPE_CHECKING

from tinyllava_edge.atomic_files import write_bytes

if TYPE_CHECKING:
    import tensorrt as trt


def load_timings(config: "trt.IBuilderConfig", path: Path | None) -> str:
    """Give the builder the timings of earlier builds; what is wrong with those that are there, or "".

    Those of another GPU or version it does not take; they are then measured and written anew.
    """
    if path is None:
        return ""
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    for content in dict.fromkeys((stored, b"")):
        cache: trt.ITimingCache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            if content == stored:
                return ""
            break
    return f"{path} is of another TensorRT or GPU, or damaged: kernels are timed again, which takes longer"


def save_timings(config: "trt.IBuilderConfig", path: Path | None) -> str:
    """Keep the timings; why that was not possible, or "": an engine is not lost for want of them."""
    if path is None:
        return ""
    cache: trt.ITimingCache = config.get_timing_cache()
    try:
        if cache is not None:
            write_bytes(path, memoryview(cache.serialize()), mode=0o600)
    except OSError as error:
        return f"kernel timings are not kept, the next build takes as long: {error}"
    return ""
