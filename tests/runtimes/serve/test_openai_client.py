"""The official client of OpenAI against a real server, held against `Model.answer`. nano, CPU."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.runtimes.serve.serving import CAT, EMOJI, QUESTION, ROOT, Running, data_url, running
from tinyllava_edge import Model, open_bundle
from tinyllava_edge.prompt import Turn
from tinyllava_edge.sampling import Sampling

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "is_fruit": {"type": "boolean"}},
    "required": ["name", "is_fruit"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30) as found:
        yield found


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with open_bundle("nano", threads=1) as opened:
        yield opened


def picture(url: str) -> Any:
    return {"type": "image_url", "image_url": {"url": url}}


def text(said: str) -> Any:
    return {"type": "text", "text": said}


def message(*content: Any, role: str = "user") -> Any:
    return {"role": role, "content": list(content) if not isinstance(content[0], str) else content[0]}


def create(client: openai.OpenAI, *messages: Any, **how: Any) -> Any:
    return client.chat.completions.create(model="nano", messages=list(messages), **how)


CONVERSATION = (
    message(text(QUESTION), picture(data_url())),
    message("blueberries", role="assistant"),
    message("Is it a fruit?"),
)
CASES: list[tuple[tuple[Any, ...], dict[str, Any], list[Turn], list[Any], dict[str, Any]]] = [
    ((message("Hello?"),), {}, [("Hello?", None)], [], {}),
    ((message(text(QUESTION), picture(data_url())),), {}, [(QUESTION, None)], [EMOJI], {}),
    ((message(picture(data_url()), text(QUESTION)),), {}, [(QUESTION, None)], [EMOJI], {}),
    (CONVERSATION, {}, [(QUESTION, "blueberries"), ("Is it a fruit?", None)], [EMOJI], {}),
    (
        (message(picture(data_url()), picture(data_url(CAT, "jpeg")), text("Which?")),),
        {"max_tokens": 8},
        [("<image>\n<image>\nWhich?", None)],
        [EMOJI, CAT],
        {"max_tokens": 8},
    ),
    (
        (message("Say little.", role="system"), message(QUESTION)),
        {"max_completion_tokens": 5, "stop": ["e"]},
        [(QUESTION, None)],
        [],
        {"system": "Say little.", "max_tokens": 5, "stop": ["e"]},
    ),
    (
        (message(text(QUESTION), picture(data_url())),),
        {"temperature": 1.5, "seed": 7, "top_p": 0.9, "frequency_penalty": 0.5, "presence_penalty": 0.5},
        [(QUESTION, None)],
        [EMOJI],
        {
            "sampling": Sampling(
                temperature=1.5, seed=7, top_p=0.9, frequency_penalty=0.5, presence_penalty=0.5
            )
        },
    ),
    (
        (message(text(QUESTION), picture(data_url())),),
        {"response_format": {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}},
        [(QUESTION, None)],
        [EMOJI],
        {"json_schema": SCHEMA},
    ),
]


@pytest.mark.parametrize(("messages", "how", "turns", "pictures", "settings"), CASES)
def test_the_answer_is_the_models_whole_and_in_pieces(
    client: openai.OpenAI,
    model: Model,
    messages: Any,
    how: dict[str, Any],
    turns: list[Turn],
    pictures: list[Any],
    settings: dict[str, Any],
) -> None:
    stream = model.answer(turns, pictures, **settings)
    expected = "".join(stream)
    timings = stream.timings
    assert timings is not None
    whole = create(client, *messages, **how)
    [choice] = whole.choices
    assert choice.message.content == expected
    assert choice.finish_reason == ("length" if timings.finish == "max_tokens" else "stop")
    chunks = list(create(client, *messages, stream=True, stream_options={"include_usage": True}, **how))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    for usage in (whole.usage, chunks[-1].usage):
        assert (usage.prompt_tokens, usage.completion_tokens) == (
            timings.prompt_tokens,
            timings.generated_tokens,
        )
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == timings.prompt_tokens - 1
    assert {"queue_ms", "vision_ms", "prefill_ms", "decode_ms"} <= set(whole.model_extra["timings"])
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures]
    assert whole.model_extra["image_ids"] == hashes


def test_the_log_probabilities_are_the_models(client: openai.OpenAI, model: Model) -> None:
    stream = model.answer([(QUESTION, None)], EMOJI, logprobs=3)
    text_ = "".join(stream)
    asked = message(text(QUESTION), picture(data_url()))
    whole = create(client, asked, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    chunks = create(client, asked, logprobs=True, top_logprobs=3, stream=True)
    in_pieces = [
        entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content
    ]
    expected = stream.logprobs
    assert expected
    assert "".join(entry.token for entry in whole).strip() == text_
    for found in (whole, in_pieces):
        assert [entry.token for entry in found] == [entry.text for entry in expected]
        assert [len(entry.top_logprobs) for entry in found] == [3] * len(expected)
        assert [entry.logprob for entry in found] == pytest.approx(
            [entry.logprob for entry in expected], abs=1e-4
        )


def test_an_answer_in_json_is_json(client: openai.OpenAI) -> None:
    asked = message(text(QUESTION), picture(data_url()))
    thing = {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": SCHEMA}}
    found = json.loads(create(client, asked, response_format=thing).choices[0].message.content)
    assert set(found) == {"name", "is_fruit"}
    assert isinstance(found["is_fruit"], bool)
    answer = create(client, asked, response_format={"type": "json_object"}, max_tokens=60)
    assert answer.choices[0].message.content.startswith("{")


def test_a_picture_is_known_by_its_hash(client: openai.OpenAI) -> None:
    first = create(client, message(text(QUESTION), picture(data_url())))
    [image_id] = first.model_extra["image_ids"]
    again = create(client, message(text(QUESTION), {"type": "image_id", "image_id": image_id}))
    assert again.choices[0].message.content == first.choices[0].message.content
    assert again.model_extra["timings"]["vision_ms"] < 1
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
    with pytest.raises(openai.NotFoundError, match="Send it again"):
        create(client, message(text(QUESTION), {"type": "image_id", "image_id": "0" * 64}))


def test_the_lines_of_the_page_print_an_answer(
    server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    [lines] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serve.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(lines.replace("http://127.0.0.1:8000", server.url), names)
    names["client"].close()
    assert capsys.readouterr().out == "blueberries\n"


def test_an_answer_may_be_sent_back_as_it_came(client: openai.OpenAI) -> None:
    said = create(client, message(QUESTION)).choices[0].message.model_dump()
    again = create(client, message(QUESTION), said, message("And why?"))
    assert again.usage.prompt_tokens > 40


def test_the_models_are_listed(client: openai.OpenAI, model: Model) -> None:
    [listed] = client.models.list().data
    assert (listed.id, listed.object) == ("nano", "model")
    assert client.models.retrieve("nano").model_extra == listed.model_extra
    assert listed.model_extra is not None
    assert listed.model_extra["context_length"] == model.language.context_length
    with pytest.raises(openai.NotFoundError, match=r"no model 'gpt'\. Known: nano"):
        client.models.retrieve("gpt")


def test_errors_are_the_clients_own_kinds(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        create(client, message(QUESTION), max_tokens=2000)
    assert found.value.code == "context_length_exceeded"
    for number in ("2000", "1024"):
        assert number in found.value.message
    with pytest.raises(openai.BadRequestError) as found:
        create(client, message(QUESTION), extra_body={"temprature": 1})
    assert (found.value.param, found.value.code) == ("temprature", "unknown_parameter")
    assert "Did you mean temperature?" in found.value.message
