"""`Chat`: conversations with one model, each with its own turns."""

import gc
import weakref

import pytest

from tests.runtimes import bundles
from tests.runtimes.bundles import picture
from tests.runtimes.scripted_models import counts, scripted_model
from tinyllava_edge import Chat, open_bundle
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BackendError, UsageError
from tinyllava_edge.sampling import Sampling

QUESTIONS = ("what is this", "and what else", "why")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def test_two_chats_with_one_model_answer_as_each_would_alone(bundle: Bundle) -> None:
    with open_bundle(bundle, threads=1, kv_type="f32") as model:
        together = [Chat(model), Chat(model)]
        for question in QUESTIONS:
            for index, chat in enumerate(together):
                pictures = [picture(index)] if question == QUESTIONS[0] else []
                list(chat.ask(question, pictures, max_tokens=6))
        for index, chat in enumerate(together):
            model.forget()
            for question in QUESTIONS:
                list(model.chat(question, [picture(index)] if question == QUESTIONS[0] else [], max_tokens=6))
            assert chat.turns == model.turns
    assert together[0].turns != together[1].turns


def test_another_chats_question_closes_an_answer_which_then_counts(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat and the dog")
    one, other = Chat(model), Chat(model)
    running = one.ask("what")
    next(running)
    list(other.ask("why", max_tokens=3))
    assert one.turns == [("what", "the")]
    assert other.turns == [("why", "the c")]
    assert list(running) == []


def test_a_dropped_answer_counts_at_once(bundle: Bundle) -> None:
    chat = Chat(scripted_model(bundle, "the cat and the dog"))
    gc.disable()  # a cycle would keep it until the collector comes
    try:
        answer = chat.ask("what")
        next(answer)
        del answer
        assert chat.turns == [("what", "the")]
    finally:
        gc.enable()


def test_a_dropped_model_is_freed_at_once(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a")
    list(model.chat("what"))
    gc.disable()
    try:
        freed = weakref.ref(model)
        del model
        assert freed() is None
    finally:
        gc.enable()


def test_a_reset_ends_the_turn_that_runs_and_forgets_it(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat")
    chat = Chat(model)
    running = chat.ask("what", picture(1))
    next(running)
    chat.reset()
    assert list(running) == []
    assert chat.turns == []
    list(chat.ask("what", picture(1)))
    assert counts(model)[0] == 1
    assert chat.turns == [("<image>\nwhat", "the cat")]


def test_settings_are_those_of_answer(bundle: Bundle) -> None:
    chat = Chat(scripted_model(bundle, "the cat and the dog"))
    greedy = Sampling(temperature=1, top_k=1)
    assert "".join(chat.ask("what", sampling=greedy, max_tokens=3)) == "the c"
    assert "".join(chat.ask("what", sampling=greedy, stop=" and")) == "the cat"
    with pytest.raises(UsageError, match="the question of turn 3 of 3 must be text, found int"):
        chat.ask(5)  # type: ignore[arg-type]  # on purpose
    assert [answer for _, answer in chat.turns] == ["the c", "the cat"]


def test_a_chat_of_a_closed_model_keeps_its_turns_and_asks_nothing_more(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat")
    chat = Chat(model)
    list(chat.ask("what"))
    model.close()
    for use in (lambda: chat.ask("why"), chat.reset):
        with pytest.raises(BackendError, match="the model is closed"):
            use()
    assert chat.turns == [("what", "the cat")]
