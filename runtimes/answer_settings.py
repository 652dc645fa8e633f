"""How one answer is to be made; `Model.answer` says what each setting means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinyllava_edge.errors import UsageError
from tinyllava_edge.sampling import Sampling

GREEDY = Sampling()


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """Settings of `Model.answer` other than those of the prompt.

    Raises:
        UsageError: `max_tokens` is out of range.
    """

    sampling: Sampling = GREEDY
    max_tokens: int | None = None
    stop: Sequence[str] | str = ()
    json_schema: dict[str, Any] | str | None = None
    grammar: str | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; it must be 1 or more.")

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings of `stop`."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
