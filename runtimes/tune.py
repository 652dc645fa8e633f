"""Measure on this machine what decides how fast a bundle answers: variants, threads, flash attention.

Every verified variant of each backend of the CPU is measured alone, in turns; the fastest of its runs counts,
as other programs only ever add time. What is chosen from that is `presets.py`'s.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.device import read_cpu
from tinyllava_edge.errors import BackendError
from tinyllava_edge.tuned import LanguageSpeed, Tuned, machine_key

from .base import BackendOptions, LanguageBackend
from .registry import LANGUAGE_BACKENDS, VISION_BACKENDS, Entry, language_opener, vision_opener

TEXT_POSITIONS = 48  # of template and question
_DECODED = 12  # tokens, of which a token's time is the median
_ROUNDS = 3
# An alternative is taken where it is this much faster; less may be noise.
_WORTH = 0.95

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass
class _Clock:
    """What is left of the time that the user gave."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self.started > self.seconds


def _cpu_backends(table: dict[str, Entry]) -> list[str]:
    """Installed backends that compute a bundle's variants on the CPU."""
    return [
        name for name, entry in table.items() if entry.reads and not entry.needs_gpu and entry.is_installed
    ]


def tune(bundle: Bundle, *, seconds: float = 60.0, say: Say = lambda line: None) -> Tuned:
    """Measure a bundle; every variant once, then again while there is time.

    Args:
        bundle: opened.
        seconds: after which nothing more is begun but what no other figure stands for.
        say: is given a line for each figure.

    Raises:
        BackendError: no backend of the CPU opens.

    """
    clock = _Clock(seconds)
    vision: dict[str, dict[str, float]] = {}
    language: dict[str, dict[str, LanguageSpeed]] = {}
    positions = _prompt_positions(bundle)
    for number in range(_ROUNDS):
        if number and clock.is_over:
            break
        for backend, variant in _verified(bundle, "vision", VISION_BACKENDS):
            if (took := _tried(say, _vision_ms, bundle, backend, variant)) is None:
                continue
            known = vision.setdefault(backend, {})
            known[variant] = min(took, known.get(variant, took))
            say(f"{backend} {variant}: {took:.0f} ms a picture")
        for backend, variant in _verified(bundle, "language", LANGUAGE_BACKENDS):
            options = BackendOptions(language=variant)
            if (speed := _tried(say, _language_speed, bundle, backend, options, positions)) is None:
                continue
            per_backend = language.setdefault(backend, {})
            per_backend[variant] = _fastest(speed, per_backend.get(variant))
            say(f"{backend} {variant}: prompt {speed.prefill_ms:.0f} ms, a token {speed.decode_ms:.1f} ms")
    if not vision or not language:
        raise BackendError(
            f"{bundle.root}: no backend of the CPU computes it here. Run `tinyllava-edge doctor`."
        )
    found = Tuned(
        manifest_sha256=bundle.manifest_sha256,
        machine=machine_key(),
        prompt_positions=positions,
        vision_ms=vision,
        language=language,
    )
    return found if clock.is_over else _with_settings(bundle, found, say)


def _with_settings(bundle: Bundle, found: Tuned, say: Say) -> Tuned:
    """Threads and flash attention, tried with llama.cpp's fastest variant against the default, in turns."""
    known = found.language.get("llamacpp")
    if not known:
        return found
    variant = min(known, key=lambda name: known[name].total_ms)
    cores = read_cpu().usable_cores
    alternatives: dict[str, dict[str, Any]] = {
        **({f"{n} threads": {"threads": n} for n in sorted({1, cores - 1}) if 0 < n < cores}),
        "flash attention off": {"flash_attention": "off"},
    }
    default = BackendOptions(language=variant)
    chosen: dict[str, Any] = {}
    for name, settings in alternatives.items():
        speeds: list[list[LanguageSpeed]] = [[], []]
        for _ in range(2):
            for which, options in enumerate((default, replace(default, **settings))):
                speeds[which].append(_language_speed(bundle, "llamacpp", options, found.prompt_positions))
        ratio = min(s.total_ms for s in speeds[1]) / min(s.total_ms for s in speeds[0])
        say(f"{name}: {ratio:.2f} of the default's time")
        if ratio < _WORTH:
            chosen |= settings
    return found.model_copy(update=chosen)


def _prompt_positions(bundle: Bundle) -> int:
    spec = bundle.manifest.language
    return max(
        1, min(bundle.manifest.vision.num_tokens + TEXT_POSITIONS, spec.default_context_length - _DECODED)
    )


def _verified(bundle: Bundle, part: str, table: dict[str, Entry]) -> Iterator[tuple[str, str]]:
    for backend in _cpu_backends(table):
        for variant in bundle.manifest.variants:
            if (variant.part, variant.status, variant.target) == (part, "verified", table[backend].reads):
                yield backend, variant.name


def _tried(say: Say, measure: Callable[..., T], *what: Any) -> T | None:
    """A figure, or None and a line where a backend does not compute that here."""
    try:
        return measure(*what)
    except BackendError as error:
        say(f"left out: {error}")
        return None


def _vision_ms(bundle: Bundle, backend: str, variant: str) -> float:
    size = bundle.manifest.vision.image_size
    pixels = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    with closing(vision_opener(backend)(bundle, BackendOptions(vision=variant))) as opened:
        opened.encode(pixels)
        start = time.perf_counter()
        opened.encode(pixels)
        return 1000 * (time.perf_counter() - start)


def _language_speed(bundle: Bundle, backend: str, options: BackendOptions, positions: int) -> LanguageSpeed:
    """Ids of ordinary rows stand for the picture's, which cost the same."""
    with closing(language_opener(backend)(bundle, options)) as opened:
        ids = np.random.default_rng(0).integers(0, opened.vocab_size, positions).astype(np.int32)
        _timed(opened, ids[:8])
        prefill = _timed(opened, ids)
        tokens = [_timed(opened, ids[:1], positions + index) for index in range(_DECODED)]
    return LanguageSpeed(prefill_ms=1000 * prefill, decode_ms=1000 * float(np.median(tokens)))


def _timed(language: LanguageBackend, ids: Any, position: int = 0) -> float:
    if position == 0:
        language.truncate(0)
    start = time.perf_counter()
    language.evaluate(ids, position)
    language.last_logits()
    return time.perf_counter() - start


def _fastest(one: LanguageSpeed, other: LanguageSpeed | None) -> LanguageSpeed:
    if other is None:
        return one
    return LanguageSpeed(
        prefill_ms=min(one.prefill_ms, other.prefill_ms), decode_ms=min(one.decode_ms, other.decode_ms)
    )
