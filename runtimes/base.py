"""The two protocols of a runtime, and the values that cross them.

Everything above them (splicing, sampling, caches, streaming, stop handling, timing) is written once, in
`engine.py`. docs/add_a_runtime.md shows how to add one; `tests/runtimes/contract.py` is what it must pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import Bundle

# One stretch of the context: token ids [n] int32, or embeddings [n, hidden] float32.
Segment = npt.NDArray[np.int32] | npt.NDArray[np.float32]


class VisionBackend(Protocol):
    """Pixels to rows of the language model's input."""

    name: str

    def encode(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[batch, 3, height, width] float32 -> [batch, tokens, hidden] float32."""
        ...

    def close(self) -> None:
        """Free what the backend holds; calling it twice is harmless."""
        ...


class LanguageBackend(Protocol):
    """A language model with one growing context, of which the engine is the only user."""

    name: str
    vocab_size: int
    hidden_size: int
    context_length: int

    def evaluate(
        self, segment: Segment, position: int, *, all_logits: bool = False
    ) -> npt.NDArray[np.float32] | None:
        """Append a segment at `position`, which is the number of positions evaluated so far.

        Returns:
            logits [n, vocab] of every row where `all_logits`, else None.
        """
        ...

    def last_logits(self) -> npt.NDArray[np.float32]:
        """Logits [vocab] after the last row evaluated."""
        ...

    def truncate(self, position: int) -> None:
        """Forget everything from `position` on; 0 empties the context."""
        ...

    def close(self) -> None:
        """Free what the backend holds; calling it twice is harmless."""
        ...


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """What a user may ask of a backend when it is opened.

    Attributes:
        vision: name of the vision variant, or None for the most precise verified one.
        language: name of the language variant, likewise.
        kv_type: type of the KV cache: "f16" (default), "f32", "q8_0".
        context_length: positions of the context, or None for the model's own.
        threads: threads over both engines together, or None for the physical cores.
    """

    vision: str | None = None
    language: str | None = None
    kv_type: str = "f16"
    context_length: int | None = None
    threads: int | None = None


VisionOpener = Callable[[Bundle, BackendOptions], VisionBackend]
LanguageOpener = Callable[[Bundle, BackendOptions], LanguageBackend]
AnyOpener = Callable[..., Any]
