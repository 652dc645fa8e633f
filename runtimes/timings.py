"""How long each stage of a turn took; definitions: docs/sources/measuring.md#times-of-a-request."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

Finish = Literal["stop_id", "stop_string", "max_tokens", "closed"]


@dataclass(frozen=True, kw_only=True)
class Timings:
    """One turn, measured with `time.perf_counter_ns`.

    Attributes:
        tokenize_ms: turns to ids.
        preprocess_ms: picture files to pixels.
        vision_ms: pixels to embeddings, connector included; 0 for a picture already known.
        prefill_ms: everything of the prompt that was not in the context yet, and choosing the first token.
        first_token_ms: from the question to the first token ready for the caller (TTFT).
        next_token_ms: of each further token, since the one before it (ITL); time the caller spent between
            pieces counts.
        total_ms: from the question to the last token.
        prompt_tokens: positions of the prompt, picture positions included.
        reused_tokens: positions of those that were in the context already.
        generated_tokens: tokens of the answer; an end-of-answer token is none of them.
        finish: what ended the answer; "closed" when the caller stopped iterating.
    """

    tokenize_ms: float
    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    first_token_ms: float
    next_token_ms: tuple[float, ...]
    total_ms: float
    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    finish: Finish

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding after the first token, or None where there was no second one."""
        spent = sum(self.next_token_ms)
        return 1000 * len(self.next_token_ms) / spent if spent else None


@dataclass
class Stopwatch:
    """Collects the marks of one turn while it runs."""

    started_ns: int = field(default_factory=time.perf_counter_ns)
    spent_ns: Counter[str] = field(default_factory=Counter)
    token_ns: list[int] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            self.spent_ns[name] += time.perf_counter_ns() - start

    def mark_token(self) -> None:
        """A token is ready for the caller."""
        self.token_ns.append(time.perf_counter_ns())

    def timings(
        self, *, prompt_tokens: int, reused_tokens: int, generated_tokens: int, finish: Finish
    ) -> Timings:
        """The finished turn."""
        marks = self.token_ns or [time.perf_counter_ns()]  # an empty answer ends where a token would be
        return Timings(
            tokenize_ms=self.spent_ns["tokenize"] / 1e6,
            preprocess_ms=self.spent_ns["preprocess"] / 1e6,
            vision_ms=self.spent_ns["vision"] / 1e6,
            prefill_ms=self.spent_ns["prefill"] / 1e6,
            first_token_ms=(marks[0] - self.started_ns) / 1e6,
            next_token_ms=tuple((b - a) / 1e6 for a, b in pairwise(marks)),
            total_ms=(marks[-1] - self.started_ns) / 1e6,
            prompt_tokens=prompt_tokens,
            reused_tokens=reused_tokens,
            generated_tokens=generated_tokens,
            finish=finish,
        )
