"""Events of a model -> a chat completion, or its chunks, as OpenAI's clients read them."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyllava_edge.runtimes.timings import Timings

from .errors import ApiError
from .jobs import Piece

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": still here\n\n"  # a comment of SSE
_FINISH = {"stop_id": "stop", "stop_string": "stop", "max_tokens": "length", "closed": "stop"}


@dataclass(frozen=True)
class Completion:
    """What all parts of one answer have in common.

    Attributes:
        model: the model's name.
        fingerprint: of what answers.
        image_ids: of the pictures that were asked about.
        with_logprobs: whether the client wants them.
    """

    model: str
    fingerprint: str
    image_ids: list[str]
    with_logprobs: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, pieces: Sequence[Piece], timings: Timings, queue_ms: float) -> dict[str, Any]:
        """The answer of a request without `stream`."""
        text = "".join(piece.text for piece in pieces)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs([entry for piece in pieces for entry in piece.logprobs]),
            "finish_reason": _FINISH[timings.finish],
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            **_counted(timings, queue_ms),
            "image_ids": self.image_ids,
        }

    def begin(self) -> bytes:
        """The first chunk."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None}, image_ids=self.image_ids)

    def piece(self, piece: Piece) -> bytes:
        """The chunk of a piece."""
        return self._chunk({"content": piece.text}, self._logprobs(piece.logprobs))

    def end(self, timings: Timings, queue_ms: float, *, with_usage: bool) -> bytes:
        """The last chunks."""
        end = self._chunk({}, finish=_FINISH[timings.finish])
        if with_usage:
            usage = {**self._head("chat.completion.chunk"), "choices": [], **_counted(timings, queue_ms)}
            end += event(usage)
        return end + DONE

    def _chunk(
        self, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None, **more: Any
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _logprobs(self, entries: Sequence[Any]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        return {"content": [_entry(entry) for entry in entries], "refusal": None}


def event(value: dict[str, Any]) -> bytes:
    """One event of SSE; JSON has no line ends of its own."""
    return f"data: {json.dumps(value, allow_nan=False)}\n\n".encode()


def failed(error: ApiError) -> bytes:
    """An error after the first byte; nothing follows, so that nobody takes the answer for whole."""
    return event(error.body)


def _entry(entry: Any) -> dict[str, Any]:
    top = [_token(other) for other in entry.top]
    return {**_token(entry), "top_logprobs": top}


def _token(entry: Any) -> dict[str, Any]:
    return {"token": entry.text, "logprob": entry.logprob, "bytes": list(entry.text.encode())}


def _counted(timings: Timings, queue_ms: float) -> dict[str, Any]:
    """`usage` as OpenAI has it, and `timings`, which is ours."""
    usage = {
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.generated_tokens,
        "total_tokens": timings.prompt_tokens + timings.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": timings.reused_tokens},
    }
    spent = {
        "queue_ms": queue_ms,
        "tokenize_ms": timings.tokenize_ms,
        "preprocess_ms": timings.preprocess_ms,
        "vision_ms": timings.vision_ms,
        "prefill_ms": timings.prefill_ms,
        "first_token_ms": timings.first_token_ms,
        "decode_ms": sum(timings.next_token_ms),
        "total_ms": timings.total_ms,
    }
    return {"usage": usage, "timings": {name: round(value, 3) for name, value in spent.items()}}
