"""The settings of a request -> those of `Model.answer`."""

from typing import Any

from tinyllava_edge.sampling import Sampling

from .request import ChatRequest

_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
)
ANY_OBJECT = {"type": "object"}


def read_settings(request: ChatRequest) -> dict[str, Any]:
    """Keyword arguments of `Model.answer`, without what the client leaves to it.

    Raises:
        UsageError: a value is out of the range that sampling has.
    """
    given = {name: getattr(request, name) for name in _SAMPLING}
    settings: dict[str, Any] = {
        "sampling": Sampling(**{name: value for name, value in given.items() if value is not None}),
        "max_tokens": request.max_completion_tokens or request.max_tokens,
        "stop": tuple(request.stop) if isinstance(request.stop, list) else request.stop or (),
    }
    if request.logprobs:
        settings["logprobs"] = request.top_logprobs or 0
    if request.grammar is not None:
        settings["grammar"] = request.grammar
    format_ = request.response_format
    if format_ is not None and format_.type == "json_object":
        settings["json_schema"] = ANY_OBJECT
    elif format_ is not None and format_.json_schema is not None:
        settings["json_schema"] = format_.json_schema.schema_
    return settings
