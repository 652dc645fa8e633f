"""What `--runtime auto` takes: what `build` chose for the bundle on this machine, else the best that opens.

It says what it took and why. A runtime that was asked for by name is never replaced by another.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.device import has_nvidia_gpu
from tinyllava_edge.errors import BackendError
from tinyllava_edge.runtimes.trt.cache import EngineCache, engine_folder

from .base import BackendOptions, LanguageBackend, VisionBackend
from .registry import AUTO_ORDER, RUNTIMES, VISION_BACKENDS, choose_runtime, is_complete, open_backends

CUDA_RUNTIME = "onnxruntime-cuda+llamacpp"


class Candidate(NamedTuple):
    """A runtime that may do, and why it is tried."""

    runtime: str
    vision: str | None  # variant, or None for what the user or the runtime chooses
    reason: str

    @property
    def variants(self) -> tuple[str, ...]:
        """The variant where there is one, as a command takes several."""
        return () if self.vision is None else (self.vision,)


class Opened(NamedTuple):
    """Both backends of a runtime, and why it is this one ("" where it was asked for)."""

    runtime: str
    vision: VisionBackend
    language: LanguageBackend
    reason: str


def open_runtime(name: str, bundle: Bundle, options: BackendOptions) -> Opened:
    """Open a runtime by name, for "auto" the first candidate that opens; raises as `open_backends` does."""
    tried = candidates(bundle, options) if name == "auto" else [Candidate(choose_runtime(name), None, "")]
    failed: list[str] = []
    for number, (runtime, vision, reason) in enumerate(tried, start=1):
        chosen = replace(options, vision=vision or options.vision)
        try:
            return Opened(runtime, *open_backends(runtime, bundle, chosen), "; ".join([*failed, reason]))
        except BackendError as error:
            if number == len(tried):
                raise
            failed.append(f"{runtime} does not open ({error})")
    raise AssertionError("there is always a candidate")


def settle_runtime(name: str, bundle: Bundle) -> Candidate:
    """What a name means for a bundle, for "auto" what `build` chose here; else as `choose_runtime` does.

    For commands that compare: where it then does not open, they say so, and compare nothing else.
    """
    built = _built_here(bundle) if name == "auto" else None
    return built or Candidate(choose_runtime(name), None, "")


def candidates(bundle: Bundle, options: BackendOptions) -> list[Candidate]:
    """Runtimes to try for a bundle, best first; at least one, which may be not installed.

    What `build` chose is always tried: where it cannot be opened any more, that is to be said.
    """
    found = list(_preferred(bundle, options))
    for runtime in AUTO_ORDER:
        if is_complete(runtime) and runtime not in [candidate.runtime for candidate in found]:
            found.append(Candidate(runtime, None, "the first that is installed"))
    return found or [Candidate(AUTO_ORDER[0], None, "none is installed")]


def _preferred(bundle: Bundle, options: BackendOptions) -> Iterator[Candidate]:
    chosen = _built_here(bundle)
    if chosen is not None and options.vision in (None, chosen.vision):
        yield chosen
    elif has_nvidia_gpu() and is_complete(CUDA_RUNTIME):
        built = [name for name in ("tensorrt", "tensorrt-rtx") if VISION_BACKENDS[name].is_installed]
        hint = f"; tinyllava-edge build {bundle.root} --target {built[0]} may make it faster" if built else ""
        yield Candidate(CUDA_RUNTIME, None, f"there is a GPU, and nothing was built for it{hint}")


def _built_here(bundle: Bundle) -> Candidate | None:
    """What `build` chose for the bundle on this machine."""
    choice = EngineCache().choice(bundle.manifest_sha256) if engine_folder().is_dir() else None
    if choice is None or choice.runtime not in RUNTIMES:
        return None
    return Candidate(choice.runtime, choice.vision, f"chosen by build here: {choice.steps[-1].reason}")
