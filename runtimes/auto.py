"""What `auto`, the default runtime, takes: what `build` chose for the bundle here, else the best that opens.

Best is a GPU before the CPU. What was taken and why is said, and each retreat with its reason. A runtime that
was asked for by name is never replaced by another.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.device import has_nvidia_gpu
from tinyllava_edge.errors import BackendError, BundleError, UsageError
from tinyllava_edge.parity_files import read_parity
from tinyllava_edge.presets import DEFAULT_PRESET, Pair, choose_pair, no_pair, pairs
from tinyllava_edge.runtimes.trt.binding import TARGETS
from tinyllava_edge.runtimes.trt.cache import EngineCache, engine_folder
from tinyllava_edge.tuned import Tuned, read_tuned

from .base import BackendOptions, LanguageBackend, VisionBackend
from .registry import (
    CPU_RUNTIME,
    CUDA_RUNTIME,
    RUNTIMES,
    VISION_BACKENDS,
    choose_runtime,
    cpu_runtimes,
    is_complete,
    open_backends,
    targets,
)


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
    """Both backends of a runtime, why it is this one (where "auto" took it), and what they have to say."""

    runtime: str
    vision: VisionBackend
    language: LanguageBackend
    reason: str


def open_runtime(name: str, bundle: Bundle, options: BackendOptions) -> Opened:
    """Open a runtime by name, for "auto" the first candidate that opens.

    Raises:
        BackendError: it does not open, or none of the candidates; the message then has every reason.
        BundleError, UsageError: as `open_backends` does; what is wrong for one is tried on no other.
    """
    tried = candidates(bundle, options) if name == "auto" else [Candidate(choose_runtime(name), None, "")]
    failed: list[str] = []
    for number, (runtime, vision, reason) in enumerate(tried, start=1):
        chosen, variants = _with_preset(runtime, bundle, replace(options, vision=options.vision or vision))
        if name == "auto":
            chosen = _with_tuned(runtime, bundle, chosen)
        try:
            pair = open_backends(runtime, bundle, chosen)
        except BackendError as error:
            if len(tried) == 1:
                raise
            failed.append(f"{runtime} does not open ({error})")
            if number == len(tried):
                raise BackendError("; ".join(failed)) from None
        else:
            notes = [getattr(backend, "note", "") for backend in pair]
            return Opened(runtime, *pair, "; ".join(filter(None, [*failed, reason, variants, *notes])))
    raise AssertionError("there is always a candidate")


def _with_preset(runtime: str, bundle: Bundle, options: BackendOptions) -> tuple[BackendOptions, str]:
    """The options with variants and settings that were left open, and what to say of them."""
    preset = options.preset or DEFAULT_PRESET
    if targets(runtime) is None:
        if options.preset:
            raise UsageError(f"runtime {runtime} has no variants to choose from. Leave --preset out.")
        return options, ""
    if options.vision and options.language:
        return options, ""
    found = _open_pairs(runtime, bundle, options, read_tuned(bundle))
    if len(found) < 2:
        return options, ""
    pair = choose_pair(preset, found)
    if pair is None:
        return options, no_pair(preset, found)
    said = f"preset {preset}: {pair.label}"
    return replace(options, vision=pair.vision.name, language=pair.language.name), said


def _with_tuned(runtime: str, bundle: Bundle, options: BackendOptions) -> BackendOptions:
    """The options with the settings that `tune` found for llama.cpp on the CPU, where they were left open."""
    tuned = read_tuned(bundle) if runtime in cpu_runtimes() and "llamacpp" in RUNTIMES[runtime] else None
    if tuned is None:
        return options
    attention = options.flash_attention or (None if options.kv_type else tuned.flash_attention)
    return replace(options, threads=options.threads or tuned.threads, flash_attention=attention)


def _open_pairs(runtime: str, bundle: Bundle, options: BackendOptions, tuned: Tuned | None) -> list[Pair]:
    """Pairs of variants that a runtime reads, of those that the user left open."""
    read = targets(runtime)
    return [
        pair
        for pair in (pairs(bundle, runtime, RUNTIMES[runtime], read, tuned) if read else ())
        if options.vision in (None, pair.vision.name, pair.vision.precision)
        and options.language in (None, pair.language.name)
    ]


def _cpu_runtime(bundle: Bundle, options: BackendOptions) -> str:
    """The runtime of the CPU whose pair of variants is the preset's, where `tune` measured all of them."""
    tuned = read_tuned(bundle)
    if tuned is None:
        return CPU_RUNTIME
    preset = options.preset or DEFAULT_PRESET
    found = [
        pair
        for runtime in cpu_runtimes()
        for pair in _open_pairs(runtime, bundle, options, tuned)
        if pair.request_ms is not None
    ]
    pair = choose_pair(preset, found)
    return CPU_RUNTIME if pair is None else pair.runtime


def settle_runtime(name: str, bundle: Bundle) -> Candidate:
    """What a name means for a bundle: for "auto", and for its own runtime, what `build` chose here.

    Else as `choose_runtime` does. For commands that compare: where it then does not open, they say so, and
    compare nothing else. An engine is there for one variant only, which is then the one that is meant.
    """
    runtime = choose_runtime(name)
    has_engines = RUNTIMES[runtime][0] in TARGETS
    built = _built_here(bundle) if name == "auto" or has_engines else None
    if built is not None and name in ("auto", built.runtime):
        return built
    return Candidate(runtime, None, "")


def candidates(bundle: Bundle, options: BackendOptions) -> list[Candidate]:
    """Runtimes to try for a bundle, best first; at least one, which may be not installed.

    What `build` chose is always tried: where it cannot be opened any more, that is to be said.
    """
    found: list[Candidate] = []
    unusable = ""
    try:
        found += _built(bundle, options)
    except BackendError as error:  # the engine cache is not to be trusted; the rest needs none
        unusable = f"{error} "
    why_last = "no NVIDIA GPU is here"
    if has_nvidia_gpu():
        parity = _cuda_parity(bundle)
        why_last = "the CPU is what is left"
        failed = "" if parity is None or parity["passed"] else str(parity.get("verdict", "it did not pass"))
        if failed and _is_before_language(parity):
            why_last = f"{CUDA_RUNTIME} failed verify ({failed})"
        elif is_complete(CUDA_RUNTIME):
            why = _why_cuda(bundle, is_verified=parity is not None)
            found.append(Candidate(CUDA_RUNTIME, None, f"{why}{failed and f'; verify: {failed}'}"))
    # torch is for who gives it a checkpoint, where the pair that reads the bundle is not installed.
    last = choose_runtime("auto") if options.checkpoint else _cpu_runtime(bundle, options)
    found.append(Candidate(last, None, why_last))
    first = {candidate.runtime: candidate for candidate in reversed(found)}  # of two of a runtime
    return [
        candidate._replace(reason=f"{unusable}{candidate.reason}")
        for candidate in found
        if first[candidate.runtime] is candidate
    ]


def _built(bundle: Bundle, options: BackendOptions) -> Iterator[Candidate]:
    chosen = _built_here(bundle)
    if chosen is not None and options.vision not in (None, chosen.vision):
        other = f"build here chose vision {chosen.vision}, {options.vision} was asked for"
        yield chosen._replace(vision=options.vision, reason=other)
    elif chosen is not None:
        yield chosen


def _why_cuda(bundle: Bundle, *, is_verified: bool) -> str:
    said = "there is a GPU, and nothing that was built for it is taken"
    if not is_verified:
        said += f"; not verified on it yet: tinyllava-edge verify {bundle.root} --runtime {CUDA_RUNTIME}"
    targets = [name for name in ("tensorrt", "tensorrt-rtx") if VISION_BACKENDS[name].is_installed]
    if targets:
        said += f"; tinyllava-edge build {bundle.root} --target {targets[0]} may make it faster"
    return said


def _cuda_parity(bundle: Bundle) -> dict[str, Any] | None:
    with suppress(BundleError):  # a damaged file is no word against the GPU; `verify` and `bench` name it
        return read_parity(bundle, CUDA_RUNTIME)
    return None


def _is_before_language(parity: dict[str, Any] | None) -> bool:
    """Whether what failed is the vision side, which another runtime would compute otherwise."""
    first = (parity or {}).get("first_failure") or {}
    return first.get("stage") in (None, "tower", "connector")


def _built_here(bundle: Bundle) -> Candidate | None:
    """What `build` chose for the bundle on this machine."""
    choice = EngineCache().choice(bundle.manifest_sha256) if engine_folder().is_dir() else None
    if choice is None or choice.runtime not in RUNTIMES:
        return None
    return Candidate(choice.runtime, choice.vision, f"chosen by build here: {choice.steps[-1].reason}")
