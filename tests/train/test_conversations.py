"""Every form of a record becomes the same conversation; what is not understood is named."""

from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.errors import RecordError
from tinyllava_edge.train.conversations import Conversation, parse_record


def _record(image: str | None, *values: str) -> dict[str, Any]:
    messages = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "x", "conversations": messages} | ({"image": image} if image else {})


def _parse(record: object) -> Conversation:
    return parse_record(record, 3, Path("my.json"), Path("photos"))


def test_conversations_keep_their_turns_and_place_the_marker_first() -> None:
    first = _parse(_record("a.png", "What? <image>", "A cat.", "Sure?", "Yes."))
    assert first.pictures == (Path("photos", "a.png"),)
    assert first.turns == (("<image>\nWhat?", "A cat."), ("Sure?", "Yes."))
    assert first.where == "my.json: record 3 (id x)"
    second = _parse(_record(None, "Hi", "Ho"))
    assert second.pictures == ()
    assert second.turns == (("Hi", "Ho"),)
    assert _parse({"conversations": _record(None, "Hi", "Ho")["conversations"]}).id == "3"


HUMAN, GPT = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}
SYSTEM = {"role": "system", "content": "Be brief."}
OLD = _parse(_record("a.png", "<image>\nWhat?", "A cat.", "Sure?", "Yes."))
TWO = [{"from": "human", "value": "<image>\n<image>\nSame?"}, GPT]


def _messages(content: object, **more: Any) -> dict[str, Any]:
    """The conversation of OLD as `messages`, with another content of the first."""
    said = [content, "A cat.", "Sure?", "Yes."]
    roles = ("user", "assistant")
    return {
        "id": "x",
        "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)],
        **more,
    }


SAME: dict[str, dict[str, Any]] = {
    "messages": _messages("<image>\nWhat?", image="a.png"),
    "a list of one picture": {
        **_record(None, "<image>\nWhat?", "A cat.", "Sure?", "Yes."),
        "image": ["a.png"],
    },
    "images": _messages("What?", images=["a.png"]),
    "parts": _messages([{"type": "image"}, {"type": "text", "text": "What?"}], images=["a.png"]),
    "parts that name it": _messages([{"type": "text", "text": "What?"}, {"type": "image", "image": "a.png"}]),
    "parts that have its path": _messages(
        [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"}]
    ),
    "parts as OpenAI has them": _messages(
        [
            {"type": "text", "text": "What?"},
            {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
        ]
    ),
    "parts as a table has them": _messages(
        [
            {"type": "text", "text": "What?\n", "index": None},
            {"type": "image", "text": None, "index": 0},
        ],
        images=["a.png"],
    ),
    "roles in conversations": {
        "id": "x",
        "image": "a.png",
        "conversations": [
            {"from": "user", "value": "<image>\nWhat?"},
            {"from": "assistant", "value": "A cat.", "loss": True},
            {"role": "human", "value": "Sure?", "loss": False},
            {"from": "gpt", "content": [{"type": "text", "text": "Yes."}]},
        ],
    },
    "nothing said": _messages("<image>\nWhat?", image="a.png", video=None, system="", conversations=None),
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_is_the_same_conversation(form: str) -> None:
    found = _parse(SAME[form])
    assert (found.id, found.pictures, found.turns) == (OLD.id, OLD.pictures, OLD.turns)
    assert (found.system, found.notes) == ("", ())


def test_several_pictures_have_a_marker_each_in_their_order() -> None:
    paths = (Path("photos", "a.png"), Path("photos", "b.png"))
    apart = [HUMAN | {"value": "<image>\nA?"}, GPT, HUMAN | {"value": "B? <image>"}, GPT]
    found = _parse({"image": ["a.png", "b.png"], "conversations": apart})
    assert (found.pictures, found.turns) == (paths, (("<image>\nA?", "b"), ("<image>\nB?", "b")))
    parts = [
        *({"type": "image", "image": name} for name in ("a.png", "b.png")),
        {"type": "text", "text": "Same?"},
    ]
    for record in ({"images": ["a.png", "b.png"], "conversations": TWO}, _messages(parts)):
        found = _parse(record)
        assert found.pictures == paths
        assert found.turns[0][0] == "<image>\n<image>\nSame?"


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [{"from": "system", "value": " Be brief.\n"}, HUMAN, GPT]},
        {"messages": [SYSTEM, HUMAN, GPT]},
        {"system": "Be brief.", "conversations": [HUMAN, GPT]},
        {"system": "Be brief.", "conversations": [{"from": "system", "value": ""}, HUMAN, GPT]},
    ],
)
def test_a_system_text_is_kept(record: dict[str, Any]) -> None:
    found = _parse(record)
    assert (found.system, found.turns) == ("Be brief.", (("a", "b"),))


def test_what_is_passed_over_or_learned_as_text_is_noted() -> None:
    found = _parse({"conversations": [{"from": "gpt", "value": "Welcome"}, HUMAN, GPT]})
    assert found.turns == (("a", "b"),)
    assert [kind for kind, _ in found.notes] == ["passed over"]
    for text in ("Is <video> a tag?", "<|vision_start|><|image_pad|>What?", "<image-placeholder>\nWhat?"):
        assert [kind for kind, _ in _parse(_record(None, text, "A car.")).notes] == ["other marker"]


BAD: list[tuple[object, str, str]] = [
    ("text", "malformed record", "str, expected an object"),
    (None, "malformed record", "NoneType"),
    ({"id": "x"}, "malformed record", r"neither conversations nor messages .*found keys: id"),
    ({"dialog": [HUMAN, GPT]}, "malformed record", "found keys: dialog"),
    ({"conversations": {}}, "malformed record", "neither conversations"),
    ({"conversations": ["a", "b"]}, "malformed record", "neither conversations"),
    ({"conversations": [HUMAN, GPT], "messages": [HUMAN, GPT]}, "malformed record", "and 'messages'"),
    (_record(None), "malformed record", "0 messages"),
    (_record(None, "only a question"), "malformed record", "1 messages"),
    ({"conversations": [HUMAN, HUMAN]}, "malformed record", "message 1 must be a text from 'gpt'"),
    ({"conversations": [GPT, HUMAN, HUMAN]}, "malformed record", "message 2"),
    ({"conversations": [HUMAN, {"from": "gpt"}]}, "malformed record", "message 1 .*'value' is NoneType"),
    ({"conversations": [HUMAN, {"from": "gpt", "value": ["b"]}]}, "malformed record", "message 1"),
    (
        {"conversations": [HUMAN, GPT | {"content": "c"}]},
        "malformed record",
        "message 1 has 'value' and 'cont",
    ),
    ({"conversations": [HUMAN, GPT | {"loss": False}]}, "malformed record", "message 1 has 'loss': False"),
    ({"conversations": [HUMAN, GPT | {"weight": 0}]}, "malformed record", "message 1 has 'weight'"),
    ({"conversations": [{"from": "narrator", "value": "a"}, GPT]}, "unknown role", "0: .*'narrator' .'from'"),
    ({"messages": [HUMAN, {"role": "tool", "content": "b"}]}, "unknown role", "1: .*'tool' .'role'"),
    ({"conversations": [HUMAN, {"from": "", "value": "b"}]}, "unknown role", "from ''"),
    ({"conversations": [HUMAN, {"value": "b"}]}, "unknown role", "from None"),
    ({"conversations": [HUMAN, {"from": ["gpt"], "value": "b"}]}, "unknown role", "gpt"),
    ({"messages": [HUMAN, GPT, SYSTEM, HUMAN, GPT]}, "unknown role", "message 2 is from 'system'"),
    ({"messages": [SYSTEM, HUMAN, GPT], "system": "Be kind."}, "malformed record", "'system' and a message"),
    ({"messages": [HUMAN, GPT], "system": {"a": 1}}, "malformed record", "system is"),
    ({"image": ["a.png", 7], "conversations": [HUMAN, GPT]}, "malformed record", "image is .*one path"),
    ({"image": 7, "conversations": [HUMAN, GPT]}, "malformed record", "image is 7"),
    ({"images": [{"path": "a.png"}], "messages": [HUMAN, GPT]}, "malformed record", "images is .*path"),
    (
        {"image": "a.png", "images": ["b.png"], "conversations": TWO},
        "malformed record",
        "'image' and 'images'",
    ),
    ({"video": "x.mp4", "conversations": [HUMAN, GPT]}, "unread media", "'video', which is not read"),
    ({"videos": ["x.mp4"], "messages": [HUMAN, GPT]}, "unread media", "'videos'"),
    ({"image": "x.mp4", "conversations": [HUMAN, GPT]}, "unread media", "x.mp4 is no picture"),
    ({"video_path": "x.MOV", "conversations": [HUMAN, GPT]}, "unread media", "'video_path'"),
    ({"image_file": "x.jpg", "conversations": [HUMAN, GPT]}, "unread media", "'image_file'"),
    ({"frames": ["a.jpg", "b.jpg"], "conversations": [HUMAN, GPT]}, "unread media", "'frames' .b.jpg"),
    ({"clip": [{"path": "x.mp4"}], "conversations": [HUMAN, GPT]}, "unread media", "'clip' .x.mp4"),
    ({"messages": [HUMAN, GPT | {"tool_calls": [1]}]}, "unread media", "message 1 has the key 'tool_calls'"),
    (_messages([{"type": "video", "video": "x.mp4"}]), "unread media", "part of type 'video'"),
    (_record(None, "<video>\nWhat?", "A car."), "unread media", "message 0: <video> where a picture"),
    (
        _record("a.png", "<image>\nWhat?", "A.", "And here? <audio> ", "B."),
        "unread media",
        "message 2: <audio>",
    ),
    (
        _messages([{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}]),
        "unread media",
        "address or a picture itself",
    ),
    ({"image": "https://a.b/c.png", "conversations": [HUMAN, GPT]}, "unread media", "an address"),
    ({"image": "iVBO" * 2000, "conversations": [HUMAN, GPT]}, "unread media", "iVBO is an address or"),
    ({"messages": [HUMAN | {"photo": "a.pgm"}, GPT]}, "unread media", "message 0 has the key 'photo'"),
    (_messages([{"type": "image", "alt": "a"}]), "unread media", "message 0: .*'alt'"),
    (_messages([{"type": "image", "path": "a.png", "image": "a.png"}]), "malformed record", "path and image"),
    (_messages([{"type": "image_url", "image_url": ["a.png"]}]), "malformed record", "'image_url' is list"),
    (_messages([{"type": ["image"]}]), "unread media", "part of type ..image"),
    (_messages([{"type": "image", "index": 1}], images=["a.png"]), "unread media", "'index'"),
    (_messages(["What?"]), "unread media", "part of type None"),
    (
        _messages([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        "malformed record",
        "several",
    ),
    (_messages([{"type": "text"}]), "malformed record", "'text' is NoneType"),
    (_messages([{"type": "image", "image": "a.png"}], image="b.png"), "malformed record", "some pictures"),
    (
        _messages([{"type": "image"}, {"type": "text", "text": "<image>?"}], image="a.png"),
        "picture markers",
        "its",
    ),
    (
        _messages([{"type": "image"}, {"type": "text", "text": "Same?"}, {"type": "image"}]),
        "picture markers",
        "behind",
    ),
    (_messages([{"type": "image"}]), "picture markers", "0 picture.* Keys of the record: id, messages"),
    (_record(None, "<image>\nWhat?", "A cat."), "picture markers", "0 picture.* Keys .*: id, conversations"),
    (
        _record("a.png", "Read <image>", "It says <image>"),
        "picture markers",
        "message 1: <image> in a text from 'gpt'",
    ),
    ({"system": "<image>", "conversations": [HUMAN, GPT]}, "picture markers", "system text"),
    (_record("a.png", "<image>\nA?", "B.", "<image>\nC?", "D."), "picture markers", "2 <image>"),
    ({"image": ["a.png", "b.png"], "conversations": [HUMAN, GPT]}, "picture markers", "2 picture"),
    ({"image": ["a.png", "b.png"], "conversations": [*TWO, *TWO]}, "picture markers", "4 <image>"),
    (
        {
            "image": ["a.png", "b.png"],
            "conversations": [HUMAN | {"value": "<image>"}, GPT | {"value": "<image>"}],
        },
        "picture markers",
        "message 1",
    ),
]


@pytest.mark.parametrize(("record", "kind", "reason"), BAD)
def test_a_bad_record_is_refused_with_its_kind(record: object, kind: str, reason: str) -> None:
    with pytest.raises(RecordError, match=reason) as caught:
        _parse(record)
    assert caught.value.kind == kind
