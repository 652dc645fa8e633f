"""What may stand in the body of `/v1/chat/completions`; anything else is refused by its name."""

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ApiError

MAX_MESSAGES = 256
MAX_PARTS = 64  # of one message
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
MAX_GRAMMAR_CHARACTERS = 65_536
MAX_SEED = 2**63 - 1
# Fields of OpenAI's that change nothing in an answer, and are taken without effect.
WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
# Those that ask for something that is not here; null, or the value shown, asks for nothing.
NOT_HERE: dict[str, Any] = {
    "n": 1,
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "functions": [],
    "function_call": "none",
    "logit_bias": {},
    "modalities": ["text"],
    "audio": None,
    "prediction": None,
    "reasoning_effort": "none",
    "verbosity": None,
    "web_search_options": None,
}


_TELLING = {
    "extra_forbidden": 1,
    "literal_error": 2,
    "finite_number": 3,
}  # kinds of faults that say more than others


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ImageUrl(_Strict):
    """Where a picture is: a data URL, or https where the owner allows its host."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None  # a picture has one size here


class Part(_Strict):
    """A piece of a message: text, a picture, or a picture that was sent before."""

    type: Literal["text", "image_url", "image_id"]
    text: str | None = None
    image_url: ImageUrl | None = None
    image_id: str | None = None


class Message(_Strict):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=MAX_PARTS)]
    name: str | None = None
    refusal: None = None  # of an answer that the client sends back, as the next three
    annotations: list[None] | None = None
    audio: None = None
    tool_calls: list[None] | None = None
    function_call: None = None


class JsonSchema(_Strict):
    """`response_format.json_schema`."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None  # an answer always fits its schema


class ResponseFormat(_Strict):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(_Strict):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # nothing is hidden here


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class ChatRequest(_Strict):
    """The body; None stands for what the client does not say."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)] | None = None


def read_request(body: Any) -> ChatRequest:
    """The request of a body's value.

    Raises:
        ApiError: names the field that is wrong, and the nearest known one where it is not known.
    """
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be an object, found {type(body).__name__}.")
    given = {name: value for name, value in body.items() if name not in WITHOUT_EFFECT and value is not None}
    for name, harmless in NOT_HERE.items():
        if name in given and given.pop(name) != harmless:
            allowed = "" if harmless is None else f"; only {harmless!r} may be asked for"
            raise ApiError(
                400, f"{name} is not supported{allowed}.", param=name, code="unsupported_parameter"
            )
    try:
        request = ChatRequest.model_validate(given)
    except ValidationError as error:
        raise _field_error(error) from None
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options needs stream: true.", param="stream_options")
    format_ = request.response_format
    if format_ is not None and (format_.type == "json_schema") != (format_.json_schema is not None):
        raise ApiError(
            400, "json_schema goes with type json_schema, and with it alone.", param="response_format"
        )
    if request.grammar is not None and format_ is not None and format_.type != "text":
        raise ApiError(400, "give response_format or grammar, not both.", param="grammar")
    return request


def _field_error(error: ValidationError) -> ApiError:
    """The fault that says most; of a field that may be text or a list, the deepest one."""
    first = max(
        error.errors(include_url=False),
        key=lambda fault: (_TELLING.get(fault["type"], 0), len(fault["loc"])),
    )
    parts = [
        part
        for part in first["loc"]
        if isinstance(part, int) or not part.startswith(("list[", "constrained"))
    ]
    parts = [part for part in parts if part not in ("str", "function-after")]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).strip(".")[:200]
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        near = get_close_matches(name, _known(len(first["loc"])), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return ApiError(
            400, f"unrecognized field {name[:60]!r}.{hint}", param=where, code="unknown_parameter"
        )
    return ApiError(400, f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}.", param=where)


def _known(depth: int) -> list[str]:
    kinds: tuple[type[BaseModel], ...] = (
        (ChatRequest,)
        if depth == 1
        else (*(Message, Part, ImageUrl, ResponseFormat, JsonSchema, StreamOptions),)
    )
    return [field.alias or name for kind in kinds for name, field in kind.model_fields.items()]
