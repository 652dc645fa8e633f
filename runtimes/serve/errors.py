"""What a client is told when a request fails: OpenAI's shape, and nothing about this machine."""

import re
from typing import Any

from tinyllava_edge.errors import (
    ContextOverflowError,
    ImageError,
    PromptError,
    TinyLlavaEdgeError,
    UsageError,
)

_PATH = re.compile(r"(?<![\w/<])/(?:[\w.@+-]+/)+[\w.@+-]*")
FAILED = "the model failed on this request; the server's own output says why."


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: of HTTP.
        message: for the client; no path, address or name of a file of this machine.
        param: the field that is wrong, as `messages[0].content`.
        code: for programs, as `model_not_found`.
        headers: of the response, besides those of every one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kind = "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        elif self.status >= 500:
            kind = "server_error"
        told = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": told}


def told(error: Exception) -> ApiError:
    """What a client is told of an error of the model.

    The messages of prompts, settings and pictures are about what the client sent. Every other one may name
    files of this machine, and is not handed on.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextOverflowError):
        return ApiError(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, PromptError):
        return ApiError(400, str(error), param="messages")
    if isinstance(error, UsageError):
        return ApiError(400, without_paths(str(error)))  # a grammar's has llama.cpp's words in it
    if isinstance(error, ImageError):
        return ApiError(400, without_paths(str(error)), param="messages", code="invalid_image")
    return ApiError(500, FAILED, code="model_failed")


def without_paths(text: str) -> str:
    """A text that may be about files of this machine, without their places."""
    return _PATH.sub("(a file)", text)


def is_ours(error: Exception) -> bool:
    """Whether the client can do nothing about it, so that the server's owner is told."""
    return not isinstance(error, ApiError) and (
        not isinstance(error, TinyLlavaEdgeError) or told(error).status == 500
    )
