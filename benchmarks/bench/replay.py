"""A request's calls of the two backends, written down and made again with nothing around them.

End to end over the sum of these calls is the stitching overhead: what picture files, prompts, sampling, text
and Python cost beside the libraries' own work.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyllava_edge.runtimes.base import LanguageBackend, VisionBackend

_RECORDED = ("encode", "evaluate", "last_logits", "truncate")


@dataclass(frozen=True)
class Call:
    """One call of a backend's method, with what it was given."""

    method: Callable[..., Any]
    positional: tuple[Any, ...]
    named: dict[str, Any]


@dataclass
class Recorder:
    """Stands in front of a backend and writes down the calls that compute something."""

    backend: VisionBackend | LanguageBackend
    calls: list[Call] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.backend, name)
        if name not in _RECORDED:
            return found

        def recorded(*positional: Any, **named: Any) -> Any:
            self.calls.append(Call(found, positional, named))
            return found(*positional, **named)

        return recorded


def replay(calls: Sequence[Call]) -> dict[str, float]:
    """Make the calls again, each timed by itself.

    Args:
        calls: of one request from nothing, in their order: the first choice of a token ends the prefill.

    Returns:
        ms of each stage, and of all of them together.
    """
    spent = {"vision_ms": 0.0, "prefill_ms": 0.0, "decode_ms": 0.0}
    stage = "prefill_ms"
    for call in calls:
        start = time.perf_counter_ns()
        call.method(*call.positional, **call.named)
        took = (time.perf_counter_ns() - start) / 1e6
        name = call.method.__name__
        spent["vision_ms" if name == "encode" else stage] += took
        if name == "last_logits":
            stage = "decode_ms"
    return {**spent, "total_ms": sum(spent.values())}
