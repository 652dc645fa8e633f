"""An answer about each of many pictures: in order, decoded ahead, and a bad one ends nothing."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtimes import bundles
from tests.runtimes.bundles import picture
from tests.runtimes.scripted_models import counts, scripted_model
from tinyllava_edge import open_bundle
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BackendError, ContextOverflowError, ImageError, UsageError
from tinyllava_edge.image import open_picture

ANSWER = "the cat and the dog"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def test_each_picture_has_the_answer_that_it_has_alone() -> None:
    shown = [Path(f"tests/fixtures/images/{name}.png") for name in ("cat_231x153", "rgba_97x64")]
    given: list[Any] = [
        shown[0],
        np.asarray(open_picture(shown[1])),
        None,
        shown[1].read_bytes(),
        list(shown[:1]),
    ]
    with open_bundle("nano", threads=1) as model:
        alone: list[Any] = [model.ask("What is this?", one) for one in given]
        found = list(model.ask_each("What is this?", given, ahead=2))
        assert [one.answer for one in found] == alone
        assert len(set(alone)) > 1
        assert [one.index for one in found] == list(range(5))
        assert all(one.picture is picture for one, picture in zip(found, given, strict=True))
        first = found[0].timings
        assert first is not None
        assert first.preprocess_ms > 0
        several = list(model.ask_each(["What is this?", "Is it a cat?"], iter(shown)))
        assert [one.question for one in several] == ["What is this?", "Is it a cat?"]
        assert several[0].answer == alone[0]
        assert next(model.ask_each("What is this?", shown[0])).answer == alone[0]


def test_a_bad_picture_and_a_long_question_end_nothing(bundle: Bundle) -> None:
    model = scripted_model(bundle, ANSWER)
    given: list[Any] = [picture(1), "nowhere.png", b"no picture", 7, [picture(1), 8.5], picture(2)]
    found = list(model.ask_each("what", given))
    assert [one.answer for one in found] == [ANSWER, None, None, None, None, ANSWER]
    messages = [str(one.error) for one in found]
    assert messages[0] == messages[-1] == "None"
    assert [isinstance(one.error, ImageError) for one in found] == [False, True, True, True, True, False]
    said = ["nowhere.png", "not a picture", "int is no", "is of type float"]
    for message, words in zip(messages[1:-1], said, strict=True):
        assert words in message
    long, short = model.ask_each(["word " * 3000, "what"], [picture(1), picture(1)])
    assert isinstance(long.error, ContextOverflowError)
    assert short.answer == ANSWER


def test_no_more_is_taken_and_decoded_ahead_than_was_said(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    taken: list[int] = []

    def opened(given: Any, **how: Any) -> Any:
        decoded.append(threading.current_thread().name)
        return open_picture(given, **how)

    def endless() -> Iterator[Any]:
        for number in range(10**9):
            taken.append(number)
            yield picture(number % 5)

    monkeypatch.setattr("tinyllava_edge.runtimes.pictures.open_picture", opened)
    model = scripted_model(bundle, ANSWER)
    each = model.ask_each("what", endless(), ahead=3)
    assert (taken, decoded) == ([], [])
    for done in range(1, 4):
        next(each)
        deadline = time.monotonic() + 10
        while len(decoded) < done + 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(taken) == len(decoded) == done + 3
    assert all(name.startswith("decode pictures") for name in decoded)
    each.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode pictures")]
    assert counts(model)[0] == 3


def test_others_are_answered_in_between_and_nothing_is_remembered(bundle: Bundle) -> None:
    model = scripted_model(bundle, ANSWER)
    each = model.ask_each("what", [picture(1), picture(2)])
    assert next(each).answer == ANSWER
    assert "".join(model.chat("why")) == ANSWER
    assert next(each).answer == ANSWER
    assert len(model.turns) == 1


@pytest.mark.parametrize(
    ("question", "pictures", "settings", "error", "message"),
    [
        ("what", [None], {"temperature": -1}, UsageError, "temperature"),
        ("what", [None], {"ahead": 0}, UsageError, "ahead is 0; it must be 1 or more"),
        ("what", [None], {"max_tokens": 0}, UsageError, "max_tokens is 0"),
        ("what", 7, {}, ImageError, "int is no picture"),
        (["a", "b"], [None], {}, UsageError, "more than 1 questions and 1 pictures"),
        (["a"], [None, None], {}, UsageError, "fewer questions than pictures"),
    ],
)
def test_a_wrong_call_is_one_line(
    bundle: Bundle, question: Any, pictures: Any, settings: Any, error: type[Exception], message: str
) -> None:
    model = scripted_model(bundle, ANSWER)
    with pytest.raises(error, match=message):
        list(model.ask_each(question, pictures, **settings))
    assert model.ask("what") == ANSWER


def test_a_runtime_that_fails_is_no_pictures_fault(bundle: Bundle) -> None:
    model = scripted_model(bundle, ANSWER)
    model.language.fail_at = 5  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match="told to fail"):
        next(model.ask_each("what", [picture(1)]))


def test_urls_are_fetched_where_the_bundle_was_opened_so(bundle: Bundle) -> None:
    content = Path("tests/fixtures/images/cat_231x153.png").read_bytes()
    with open_bundle(bundle, runtime="scripted", allow_url=lambda url: content) as model:
        assert model.ask("what", "https://host/a") == model.ask("what", content)
        assert next(model.ask_each("what", "https://host/a")).error is None
        model.forget()
        assert model.ask("what", "https://host/a")
    with (
        open_bundle(bundle, runtime="scripted") as model,
        pytest.raises(ImageError, match="nothing is fetched"),
    ):
        model.ask("what", "https://host/a")
