"""A model's turns: markers and special text, what is refused, and what remains after a turn ends early."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtimes import bundles
from tests.runtimes.bundles import picture
from tests.runtimes.scripted_models import SYSTEM, CountingLanguage, bundle_ids, counts, scripted_model
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.errors import BackendError, ContextOverflowError, ImageError, PromptError, UsageError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


# --- markers and special text


def test_several_pictures_keep_their_markers_in_place(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a")
    list(model.chat("<image> and <image> differ", [picture(1), picture(2)], max_tokens=1))
    text = SYSTEM + "USER: <image> and <image> differ ASSISTANT:"
    first, second, third = (bundle_ids(part) for part in text.split("<image>"))
    rows = [IMAGE_TOKEN_ID] * bundles.NUM_TOKENS
    assert isinstance(model.language, CountingLanguage)
    assert model.language.seen == [bundles.BOS, *first, *rows, *second, *rows, *third]


@pytest.mark.parametrize(
    ("question", "number"),
    [("what", 2), ("<image> what", 2), ("<image> what", 0), ("<image><image><image>", 2)],
)
def test_markers_that_do_not_fit_the_pictures_are_refused(bundle: Bundle, question: str, number: int) -> None:
    model = scripted_model(bundle, "a")
    with pytest.raises(PromptError, match=f"{number} picture"):
        model.chat(question, [picture(i) for i in range(number)])
    assert counts(model) == (0, 0)


SPECIAL = st.lists(st.sampled_from(["</s>", "<s>", "<unk>", " ", "the", "<", "/s>", "\n", "s>"]), max_size=8)


@given(parts=SPECIAL)
def test_special_text_in_a_question_is_plain_text(bundle: Bundle, parts: list[str]) -> None:
    model = scripted_model(bundle, "a")
    question = "".join(parts)
    list(model.chat(question, max_tokens=1))
    list(model.chat(question, max_tokens=1))
    assert isinstance(model.language, CountingLanguage)
    special = [token for token in model.language.seen if token in (bundles.UNK, bundles.BOS, bundles.EOS)]
    assert special == [bundles.BOS, bundles.EOS]  # ours: the prompt's beginning, and the first answer's end
    assert model.tokenizer.decode(model.language.seen).count(question.strip()) >= 2 or not question.strip()


def test_special_text_is_the_special_token_where_that_is_asked_for(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a")
    list(model.chat("one</s>two", max_tokens=1, honour_special=True))
    assert isinstance(model.language, CountingLanguage)
    assert model.language.seen == model.tokenize([("one</s>two", None)])
    assert bundles.EOS in model.language.seen


def test_a_marker_the_model_writes_is_text(bundle: Bundle) -> None:
    model = scripted_model(bundle, [byte + 3 for byte in b"<image> x"])
    assert "".join(model.chat("what", stop=["y"])) == "<image> x"
    assert "".join(model.chat("and", stop=["x"])) == "<image>"  # cut: the next prompt is made from text
    assert "".join(model.chat("why", [picture(1)])) == "<image> x"


# --- what is refused, and what remains


def test_an_overflow_is_refused_with_the_numbers_before_any_work(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a", context=250)
    prompt = len(model.tokenize([("<image>\nwhat", None)])) - 1 + bundles.NUM_TOKENS
    with pytest.raises(ContextOverflowError) as error:
        model.chat("what", [picture(1)], max_tokens=250)
    for number in (prompt, 250, prompt + 250):
        assert str(number) in str(error.value)
    assert counts(model) == (0, 0)
    assert "".join(model.chat("what", [picture(1)], max_tokens=250 - prompt)) == "a"


def test_a_conversation_that_outgrows_the_context_is_refused_and_can_be_reset(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat and the dog", context=320)
    past, question = ("what is this", "the cat and the dog"), ("what is this", None)
    lengths = [len(model.tokenize([*[past] * turns, question])) for turns in range(20)]
    turns_that_fit = sum(length + 20 <= 320 for length in lengths)
    for _ in range(turns_that_fit):
        list(model.chat("what is this", max_tokens=20))
    with pytest.raises(ContextOverflowError):
        model.chat("what is this", max_tokens=20)
    assert len(model.turns) == turns_that_fit
    model.reset()
    assert "".join(model.chat("what is this", max_tokens=20)) == "the cat and the dog"


def test_without_max_tokens_the_answer_takes_what_the_context_leaves(bundle: Bundle) -> None:
    answer = bundle_ids("a " * 500)
    model = scripted_model(bundle, answer, context=250)
    list(model.chat("what"))
    assert model.last_timings is not None
    assert model.last_timings.prompt_tokens + model.last_timings.generated_tokens == 250


def test_logits_of_a_prompt_that_does_not_fit_are_refused(bundle: Bundle) -> None:
    with pytest.raises(ContextOverflowError, match="100"):
        scripted_model(bundle, "a", context=100).logits([("what", None)])


@pytest.mark.parametrize(
    "settings", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"stop": [""]}, {"seed": -3}]
)
def test_a_setting_out_of_range_is_refused_before_any_work(bundle: Bundle, settings: dict[str, Any]) -> None:
    model = scripted_model(bundle, "a")
    with pytest.raises(UsageError):
        model.chat("what", [picture(1)], **settings)
    assert counts(model) == (0, 0)


def test_breaking_off_keeps_the_answer_so_far(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat and the dog")
    shown = ""
    for piece in model.chat("what", [picture(1)]):
        shown += piece
        if shown.endswith("cat"):
            break
    assert model.turns == [("<image>\nwhat", "the cat")]
    assert model.last_timings is not None
    assert model.last_timings.finish == "closed"
    _, before = counts(model)
    list(model.chat("why"))
    # All of the prompt and the answer but its last token, which was never evaluated.
    assert model.last_timings.reused_tokens == before


def test_breaking_off_while_text_is_held_back_keeps_what_was_shown(bundle: Bundle) -> None:
    model = scripted_model(bundle, "red \N{EURO SIGN}")
    answer = model.chat("what", stop=["d \N{EURO SIGN} and more"])
    assert [next(answer), next(answer)] == ["r", "e"]
    answer.close()
    assert model.turns == [("what", "re")]


def test_an_interrupt_in_the_middle_keeps_the_answer_so_far(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat and the dog")
    answer = model.chat("what", [picture(1)])
    shown = next(answer) + next(answer) + next(answer)
    assert isinstance(model.language, CountingLanguage)
    model.language.failure = KeyboardInterrupt()
    model.language.fail_at = 0
    with pytest.raises(KeyboardInterrupt):
        list(answer)
    assert model.turns == [("<image>\nwhat", shown)]
    model.language.fail_at = None
    assert "".join(model.chat("why")) == "the cat and the dog"
    assert counts(model)[0] == 1


def test_closing_before_the_first_piece_drops_the_turn(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat")
    model.chat("what", [picture(1)]).close()
    assert model.turns == []
    assert counts(model) == (0, 0)


def test_the_next_question_closes_a_running_answer(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat and the dog")
    running = model.chat("what")
    next(running)
    assert "".join(model.chat("why")) == "the cat and the dog"
    assert list(running) == []
    assert model.turns == [("what", "the"), ("why", "the cat and the dog")]


@pytest.mark.parametrize("stage", ["prompt", "answer"])
def test_an_error_in_the_middle_drops_the_turn_and_the_next_one_works(bundle: Bundle, stage: str) -> None:
    model = scripted_model(bundle, "the cat and the dog")
    assert isinstance(model.language, CountingLanguage)
    prompt = len(model.tokenize([("<image>\nwhat is this", None)])) - 1 + bundles.NUM_TOKENS
    model.language.fail_at = prompt + (3 if stage == "answer" else -3)
    with pytest.raises(BackendError, match="told to fail"):
        list(model.chat("what is this", [picture(1)]))
    assert model.turns == []
    model.language.fail_at = None
    assert "".join(model.chat("what is this", [picture(1)])) == "the cat and the dog"
    assert model.last_timings is not None
    assert model.last_timings.reused_tokens == 0


def test_a_picture_that_cannot_be_read_drops_the_turn(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat")
    list(model.chat("hello"))
    with pytest.raises(ImageError):
        list(model.chat("what", [b"no picture"]))
    assert len(model.turns) == 1
    list(model.chat("and now"))
    assert model.last_timings is not None
    assert model.last_timings.reused_tokens > 0


def test_logits_between_two_turns_do_not_disturb_the_conversation(bundle: Bundle) -> None:
    plain, disturbed = (scripted_model(bundle, "the cat") for _ in range(2))
    for model in (plain, disturbed):
        list(model.chat("what", [picture(1)]))
    disturbed.logits([("<image>\nother", None)], [picture(2)])
    assert "".join(plain.chat("why")) == "".join(disturbed.chat("why"))
    np.testing.assert_array_equal(plain.language.last_logits(), disturbed.language.last_logits())


def test_a_single_picture_or_stop_string_counts_as_one(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture(1).save(path)
    for single in (path, str(path), path.read_bytes(), picture(1)):
        model = scripted_model(bundle, "the cat and the dog")
        assert "".join(model.chat("what", single, stop=" and")) == "the cat"
        assert model.turns == [("<image>\nwhat", "the cat")]
        assert model.encode(single).shape[0] == 1
        assert len(model.logits([("<image>\nwhat", None)], single)) > bundles.NUM_TOKENS


@pytest.mark.parametrize("question", [None, b"what", 5, ["what"]])
def test_a_question_that_is_no_text_is_refused(bundle: Bundle, question: Any) -> None:
    with pytest.raises(UsageError, match=f"must be text, found {type(question).__name__}"):
        scripted_model(bundle, "a").chat(question)


def test_an_overflow_speaks_of_pictures_only_where_there_are_some(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a", context=250)
    with pytest.raises(ContextOverflowError) as error:
        model.chat("what", max_tokens=250)
    assert "picture" not in str(error.value)
    list(model.chat("what", [picture(1)], max_tokens=1))
    with pytest.raises(ContextOverflowError, match="4 a picture"):
        model.chat("why", max_tokens=250)
