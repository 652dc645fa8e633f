"""`Model.answer`: turns in, a stream out, and nothing remembered but what the context holds."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import repeat
from typing import Any

import numpy as np
import pytest

from tests.runtimes import bundles
from tests.runtimes.bundles import picture
from tests.runtimes.scripted_models import SYSTEM, CountingLanguage, bundle_ids, counts, scripted_model
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.errors import ContextOverflowError, PromptError, UsageError
from tinyllava_edge.prompt import Turn, template_named
from tinyllava_edge.runtimes.model import Model, open_bundle
from tinyllava_edge.runtimes.stream import Stream
from tinyllava_edge.sampling import Sampling

FIRST: list[Turn] = [("what is this", None)]
SECOND: list[Turn] = [("<image>\nwhat is this", "the cat"), ("why", None)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def reused(stream: Stream) -> int:
    """Finish an answer; how many positions were in the context already."""
    list(stream)
    assert stream.timings is not None
    return stream.timings.reused_tokens


def test_a_stream_knows_its_text_and_when_it_has_ended_its_times(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat")
    stream = model.answer(FIRST, [picture(1)])
    assert (stream.text, stream.timings, stream.finish) == ("", None, None)
    assert counts(model) == (0, 0)  # the work begins with the first piece
    first = next(stream)
    assert (stream.text, stream.timings) == (first, None)
    assert first + "".join(stream) == stream.text == "the cat"
    assert stream.timings is model.last_timings
    assert stream.finish == "stop_id"


def test_all_turns_are_in_the_prompt_as_upstream_writes_them(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a")
    list(model.answer(SECOND, [picture(1)], max_tokens=1))
    # Between two pieces around a picture; one token, the end, after the answer.
    before, after = (bundle_ids(text) for text in (SYSTEM + "USER: ", "\nwhat is this ASSISTANT: the cat"))
    rows = [IMAGE_TOKEN_ID] * bundles.NUM_TOKENS
    expected = [bundles.BOS, *before, *rows, *after, bundles.EOS, *bundle_ids("USER: why ASSISTANT:")]
    assert isinstance(model.language, CountingLanguage)
    assert model.language.seen == expected


def test_pictures_of_several_turns_stand_where_their_markers_are(bundle: Bundle) -> None:
    turns: list[Turn] = [("<image> what", "a"), ("and <image>", "b"), ("which", None)]
    one, other = (scripted_model(bundle, "a") for _ in range(2))
    list(one.answer(turns, [picture(1), picture(2)], max_tokens=1))
    list(other.answer(turns, [picture(2), picture(1)], max_tokens=1))
    for model in (one, other):
        assert isinstance(model.language, CountingLanguage)
        assert model.language.seen.count(IMAGE_TOKEN_ID) == 2 * bundles.NUM_TOKENS
    expected = one.logits(turns, [picture(1), picture(2)])[-1]
    assert one.language.last_logits() == pytest.approx(expected)
    assert other.logits(turns, [picture(2), picture(1)])[-1] != pytest.approx(expected)


def test_nothing_asked_before_counts(bundle: Bundle) -> None:
    with open_bundle(bundle, threads=1, kv_type="f32") as model:

        def ask(seed: int) -> list[float]:
            list(model.answer(FIRST, [picture(seed)], max_tokens=8))
            return [float(value) for value in model.language.last_logits()]

        alone = {}
        for seed in (1, 2):
            model.forget()
            alone[seed] = ask(seed)
        for seed in (1, 2, 1):
            assert ask(seed) == pytest.approx(alone[seed], abs=1e-4)
        assert alone[1] != pytest.approx(alone[2], abs=1e-4)
        assert model.turns == []


def test_the_next_turn_evaluates_only_what_is_new(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat")
    list(model.answer(FIRST, [picture(1)]))
    _, before = counts(model)
    stream = model.answer(SECOND, [picture(1)])
    # The context holds the prompt, and the answer that `SECOND` says as well.
    assert reused(stream) == before
    assert counts(model) == (1, before + 1 + len(bundle_ids("USER: why ASSISTANT: the cat")))


def converse(models: Iterator[Model], least_reused: int) -> list[str]:
    """Answers of two conversations that take turns, each from the next of some models."""
    said = []
    conversations: list[list[Turn]] = [[("what is this", None)], [("say", None)]]
    for number in range(6):
        turns = conversations[number % 2]
        stream = next(models).answer(turns, picture(number % 2), max_tokens=6)
        assert reused(stream) >= (least_reused if number else 0)
        said.append(stream.text)
        turns[-1:] = [(turns[-1][0], stream.text), ("and", None)]
    return said


def test_two_conversations_in_turn_reuse_what_they_share_and_answer_as_alone(bundle: Bundle) -> None:
    with ExitStack() as stack:
        fresh = (stack.enter_context(open_bundle(bundle, threads=1, kv_type="f32")) for _ in range(7))
        shared = 1 + len(bundle_ids(SYSTEM + "USER: "))
        together = converse(repeat(next(fresh)), shared)
        assert converse(fresh, 0) == together
        assert len(set(together)) > 1


def test_a_new_answer_closes_the_one_that_runs(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat and the dog")
    running = model.answer([("what", None)])
    next(running)
    assert "".join(model.answer([("why", None)])) == "the cat and the dog"
    assert list(running) == []
    assert (running.text, running.finish) == ("the", "closed")


def test_a_stream_that_is_cancelled_computes_no_token_more(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat and the dog")
    stream = model.answer(FIRST)
    next(stream)
    before = counts(model)
    stream.cancel()
    assert list(stream) == []
    assert (stream.text, stream.finish, counts(model)) == ("the", "closed", before)
    assert "".join(model.answer(FIRST)) == "the cat and the dog"


def test_a_stream_that_is_cancelled_before_its_first_piece_evaluates_nothing(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat and the dog")
    stream = model.answer(FIRST)
    stream.cancel()
    assert list(stream) == []
    assert (stream.text, stream.timings, counts(model)[1]) == ("", None, 0)
    assert "".join(model.answer(FIRST)) == "the cat and the dog"


def test_a_stream_ends_when_it_is_closed_or_dropped(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat and the dog")
    with closing(model.answer(FIRST)) as stream:
        next(stream)
    assert (list(stream), stream.finish) == ([], "closed")
    gc.disable()  # a cycle would keep it until the collector comes
    try:
        model.last_timings = None
        dropped = model.answer(FIRST)
        next(dropped)
        del dropped
        assert model.last_timings is not None
    finally:
        gc.enable()


def test_a_stream_that_never_began_has_no_times(bundle: Bundle) -> None:
    stream = scripted_model(bundle, "a").answer(FIRST)
    stream.close()
    assert (list(stream), stream.text, stream.timings) == ([], "", None)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([], "there are no turns"),
        ("what", "turn 1 must be a pair"),
        ([("what",)], "turn 1 must be a pair"),
        ([("what", "a"), ("why", "b")], "the answer of turn 2 of 2 must be None: it is asked for, found str"),
        ([("what", None), ("why", None)], "the answer of turn 1 of 2 must be text, found NoneType"),
        ([("what", 5), ("why", None)], "the answer of turn 1 of 2 must be text, found int"),
        ([(b"what", None)], "the question of turn 1 of 1 must be text, found bytes"),
    ],
)
def test_turns_that_ask_nothing_are_refused(bundle: Bundle, turns: Any, said: str) -> None:
    model = scripted_model(bundle, "a")
    with pytest.raises(UsageError, match=said):
        model.answer(turns)
    assert counts(model) == (0, 0)


@pytest.mark.parametrize("settings", [{"max_tokens": 0}, {"stop": [""]}])
def test_a_setting_out_of_range_is_refused_before_any_work(bundle: Bundle, settings: dict[str, Any]) -> None:
    model = scripted_model(bundle, "a")
    with pytest.raises(UsageError):
        model.answer(FIRST, [picture(1)], **settings)
    assert counts(model) == (0, 0)


def test_sampling_and_one_of_its_fields_are_not_both_given(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="give sampling, or temperature by itself"):
        scripted_model(bundle, "a").ask("what", sampling=Sampling(), temperature=1.0)


def test_markers_and_length_are_checked_over_all_turns(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a", context=250)
    with pytest.raises(PromptError, match=r"2 picture\(s\) but 1"):
        model.answer(SECOND, [picture(1), picture(2)])
    with pytest.raises(ContextOverflowError, match="the context holds 250"):
        model.answer([("what", "a" * 250), ("why", None)])
    assert counts(model) == (0, 0)


def test_a_marker_in_a_past_answer_is_no_picture(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a")
    list(model.answer([("what", "an <image>"), ("why", None)], max_tokens=1))
    assert isinstance(model.language, CountingLanguage)
    assert IMAGE_TOKEN_ID not in model.language.seen


def test_special_text_is_plain_text_unless_it_is_asked_for(bundle: Bundle) -> None:
    for honour_special, ends in ((False, 0), (True, 2)):
        model = scripted_model(bundle, "a")
        turns: list[Turn] = [("one</s>two</s>", None)]
        list(model.answer(turns, max_tokens=1, honour_special=honour_special))
        assert isinstance(model.language, CountingLanguage)
        assert model.language.seen.count(bundles.EOS) == ends


def test_sampling_reaches_the_answer(bundle: Bundle) -> None:
    with open_bundle(bundle, threads=1) as model:

        def say(sampling: Sampling) -> str:
            return "".join(model.answer([("say", None)], sampling=sampling, max_tokens=20))

        first, again, other = (say(Sampling(temperature=1.5, seed=seed)) for seed in (1, 1, 2))
        assert first == again != other
        assert say(Sampling(temperature=3, top_k=1)) == say(Sampling())


def test_a_penalty_changes_the_most_likely_answer(bundle: Bundle) -> None:
    model = scripted_model(bundle, "aaaaaaaa")
    assert model.ask("what") == "aaaaaaaa"
    assert model.ask("what", presence_penalty=1.9) != "aaaaaaaa"
    assert model.ask("what", repetition_penalty=3) != "aaaaaaaa"


def test_a_system_text_stands_in_the_place_of_the_templates_own(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a")
    assert isinstance(model.language, CountingLanguage)
    for system, ids in ((None, SYSTEM), ("be brief", "be brief ")):
        model.language.seen.clear()
        model.forget()
        model.ask("why", system=system, max_tokens=1)
        assert model.language.seen == [bundles.BOS, *bundle_ids(f"{ids}USER: why ASSISTANT:")]


@pytest.mark.parametrize("honour_special", [False, True])
def test_special_text_in_a_system_text_is_as_plain_as_in_a_question(
    bundle: Bundle, honour_special: bool
) -> None:
    model = scripted_model(bundle, "a")
    model.ask("why", system="be</s>brief", max_tokens=1, honour_special=honour_special)
    assert isinstance(model.language, CountingLanguage)
    assert model.language.seen.count(bundles.EOS) == int(honour_special)


def test_a_system_text_of_one_answer_in_a_conversation_is_gone_in_the_next(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat")
    for question, system in (("what", "be kind"), ("why", "be brief"), ("who", None)):
        list(model.chat(question, picture(1) if question == "what" else None, system=system))
    # The context holds the whole prompt as the template has it; the last position gives the logits.
    turns: list[Turn] = [("<image>\nwhat", "the cat"), ("why", "the cat"), ("who", None)]
    stream = model.answer(turns, picture(1))
    told = reused(stream)
    assert stream.timings is not None
    assert told >= stream.timings.prompt_tokens - 1


def test_a_system_text_that_has_no_place_or_holds_a_picture_is_refused(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a")
    with pytest.raises(PromptError, match="pictures belong to questions"):
        model.ask("what", system="see <image>")
    with pytest.raises(PromptError, match="'pretrain' has no place for a system text"):
        template_named("pretrain").with_system("be brief")


def test_log_probabilities_are_those_of_the_models_own_logits(bundle: Bundle) -> None:
    with open_bundle(bundle, threads=1, kv_type="f32") as model:
        how = Sampling(temperature=2, top_k=5, seed=3, presence_penalty=1)
        stream = model.answer(FIRST, picture(1), sampling=how, max_tokens=6, logprobs=4)
        assert (stream.logprobs, model.answer(FIRST).logprobs) == ([], None)
        stream = model.answer(FIRST, picture(1), sampling=how, max_tokens=6, logprobs=4)
        list(stream)
        found = stream.logprobs
        assert found is not None
        assert [entry.id for entry in found] == stream.ids
        assert "".join(entry.text for entry in found).strip() == stream.text
        logits = model.logits(FIRST, picture(1))[-1].astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert found[0].logprob == pytest.approx(expected[found[0].id], abs=1e-4)
        assert [one.id for one in found[0].top] == np.argsort(-expected)[:4].tolist()
        assert [one.logprob for one in found[0].top] == pytest.approx(np.sort(expected)[:-5:-1], abs=1e-4)
        for bad in (-1, 21, True):
            with pytest.raises(UsageError, match="it must be 0 to 20"):
                model.answer(FIRST, logprobs=bad)


# --- ask


def test_asking_between_two_turns_of_the_chat_leaves_them_alone(bundle: Bundle) -> None:
    plain, disturbed = (open_bundle(bundle, threads=1, kv_type="f32") for _ in range(2))
    answers: dict[Model, list[str]] = {plain: [], disturbed: []}
    for model, said in answers.items():
        with model:
            said.append("".join(model.chat("what is this", picture(1), max_tokens=6)))
            if model is disturbed:
                assert model.ask("say", picture(2), max_tokens=6)
            said.append("".join(model.chat("why", max_tokens=6)))
    assert answers[plain] == answers[disturbed]
    assert plain.turns == disturbed.turns
    assert len(plain.turns) == 2


def test_asking_forever_fills_no_context(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat and the dog", context=250)
    for seed in range(30):
        assert model.ask("what is this", picture(seed)) == "the cat and the dog"
    assert model.turns == []


def test_ask_takes_the_settings_of_chat(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat and the dog")
    assert model.ask("what", max_tokens=3, temperature=3, top_k=1, seed=1) == "the c"
    assert model.ask("what", stop=" and") == "the cat"
    with pytest.raises(UsageError, match="temperature is -1"):
        model.ask("what", temperature=-1)
    with pytest.raises(TypeError, match="colour"):
        model.ask("what", colour="red")
