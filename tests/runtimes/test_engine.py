"""A model's turns: what is computed, what is reused, what is said, what is refused."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtimes import bundles
from tests.runtimes.bundles import picture
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.config import IMAGE_TOKEN_ID
from tinyllava_edge.errors import BackendError, ContextOverflowError, ImageError, PromptError, UsageError
from tinyllava_edge.image import Picture
from tinyllava_edge.prompt import TextTokenizer
from tinyllava_edge.runtimes.base import Segment
from tinyllava_edge.runtimes.engine import Model, open_bundle
from tinyllava_edge.runtimes.scripted import ScriptedLanguage, ScriptedVision

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


class CountingVision(ScriptedVision):
    """The scripted backend, counting the pictures it encodes."""

    encoded = 0

    def encode(self, pixels: Any) -> Any:
        self.encoded += len(pixels)
        return super().encode(pixels)


class CountingLanguage(ScriptedLanguage):
    """The scripted backend, recording what it evaluates; it fails at a given position."""

    fail_at: int | None = None

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seen: list[int] = []  # ids, and -200 for each row of a picture

    def evaluate(self, segment: Segment, position: int, *, all_logits: bool = False) -> Any:
        if self.fail_at is not None and position + len(segment) > self.fail_at:
            raise BackendError("told to fail")
        self.seen += segment.tolist() if segment.ndim == 1 else [IMAGE_TOKEN_ID] * len(segment)
        return super().evaluate(segment, position, all_logits=all_logits)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(bundles.llama_tokenizer(), bos_id=None)


def scripted_model(bundle: Bundle, answer: str | Sequence[int], context: int = bundles.CONTEXT) -> Model:
    """A model that answers every question with a text, or with ids."""
    tokenizer = TextTokenizer(bundles.llama_tokenizer(), bos_id=None)
    ids = tokenizer.encode_text(answer) if isinstance(answer, str) else answer
    spec = bundle.manifest.language
    language = CountingLanguage(
        ids,
        stop_id=bundles.EOS,
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        context_length=context,
    )
    return Model(bundle, CountingVision(bundles.IMAGE_SIZE, bundles.NUM_TOKENS, spec.hidden_size), language)


def counts(model: Model) -> tuple[int, int]:
    """Pictures encoded and positions evaluated so far."""
    assert isinstance(model.vision, CountingVision)
    assert isinstance(model.language, CountingLanguage)
    return model.vision.encoded, len(model.language.seen)


@pytest.fixture(params=["scripted", "onnxruntime+llamacpp"])
def model(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Model]:
    with open_bundle(bundle.root, runtime=request.param, kv_type="f32", threads=1) as opened:
        yield opened


# --- what is said


def test_the_answer_is_streamed_in_pieces_and_stripped(bundle: Bundle) -> None:
    model = scripted_model(bundle, " the cat and the dog ")
    pieces = list(model.chat("what"))
    assert len(pieces) > 5
    assert "".join(pieces) == "the cat and the dog"
    assert model.turns == [("what", "the cat and the dog")]


def test_characters_of_several_tokens_arrive_whole(bundle: Bundle) -> None:
    answer = "5 \N{EURO SIGN} \N{GRINNING FACE}\N{FAMILY} na\u00efve"
    pieces = list(scripted_model(bundle, answer).chat("what"))
    assert "".join(pieces) == answer
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_max_tokens_ends_the_answer(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat and the dog")
    assert "".join(model.chat("what", max_tokens=3)) == "the c"
    assert model.last_timings is not None
    assert (model.last_timings.generated_tokens, model.last_timings.finish) == (3, "max_tokens")


def test_a_stop_string_ends_the_answer_and_is_never_shown(bundle: Bundle) -> None:
    model = scripted_model(bundle, "red car\nUSER: next")
    assert "".join(model.chat("what", stop=["\nUSER:"])) == "red car"
    assert model.last_timings is not None
    assert model.last_timings.finish == "stop_string"


def test_the_templates_end_string_spelled_out_ends_the_answer(bundle: Bundle) -> None:
    spelled = [byte + 3 for byte in b"yes</s>no"]  # byte tokens, not the special token
    model = scripted_model(bundle, spelled)
    assert "".join(model.chat("what")) == "yes"


def test_an_empty_answer_is_no_piece_and_a_turn(bundle: Bundle) -> None:
    model = scripted_model(bundle, [])
    assert list(model.chat("what")) == []
    assert model.turns == [("what", "")]
    assert model.last_timings is not None
    assert model.last_timings.generated_tokens == 0


# --- what is computed


def test_the_prompt_is_upstreams_with_the_pictures_rows_in_place(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a")
    list(model.chat("what is this", [picture(1)], max_tokens=1))
    before, after = (bundle_ids(text) for text in (SYSTEM + "USER: ", "\nwhat is this ASSISTANT:"))
    assert isinstance(model.language, CountingLanguage)
    expected = [bundles.BOS, *before, *[IMAGE_TOKEN_ID] * bundles.NUM_TOKENS, *after]
    assert model.language.seen == expected


def bundle_ids(text: str) -> list[int]:
    return TextTokenizer(bundles.llama_tokenizer(), bos_id=None).encode_text(text)


def test_later_turns_evaluate_only_what_is_new(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat")
    answer = len(bundle_ids("the cat"))
    list(model.chat("what is this", [picture(1)]))
    first = counts(model)
    for question in ("and what else", "why"):
        list(model.chat(question))
        encoded, evaluated = counts(model)
        # The end of the last answer, the question, and all of this answer but its unneeded end.
        new = 1 + len(bundle_ids(f"USER: {question} ASSISTANT:")) + answer
        assert (encoded, evaluated - first[1]) == (1, new)
        assert model.last_timings is not None
        assert model.last_timings.reused_tokens == first[1]
        first = (encoded, evaluated)


def test_the_whole_conversation_is_what_upstreams_prompt_says(bundle: Bundle) -> None:
    model = scripted_model(bundle, "the cat")
    list(model.chat("what is this", [picture(1)]))
    list(model.chat("why", max_tokens=1))
    turns = [("<image>\nwhat is this", "the cat"), ("why", None)]
    expected: list[int] = []
    for token in model.tokenize(turns):
        expected += [token] * (bundles.NUM_TOKENS if token == IMAGE_TOKEN_ID else 1)
    assert isinstance(model.language, CountingLanguage)
    assert model.language.seen == expected


def test_generated_ids_stay_in_the_context_even_where_their_text_has_others(bundle: Bundle) -> None:
    letters = [
        bundle_ids("t")[1],
        bundle_ids("h")[1],
        bundle_ids("e")[1],
    ]  # "the" is one token when tokenised
    model = scripted_model(bundle, letters)
    assert "".join(model.chat("what")) == "the"
    _, before = counts(model)
    list(model.chat("why"))
    assert model.last_timings is not None
    assert model.last_timings.reused_tokens == before


def test_a_picture_seen_before_is_not_encoded_again(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a")
    list(model.chat("what", [picture(1)]))
    list(model.chat("and this", [picture(2)]))
    list(model.chat("and this again", [picture(1)]))
    assert counts(model)[0] == 2
    model.reset()
    list(model.chat("what", [picture(1)]))
    assert counts(model)[0] == 2
    model.forget()
    list(model.chat("what", [picture(1)]))
    assert counts(model)[0] == 3


def test_another_question_about_the_same_picture_reuses_it_after_a_reset(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a")
    list(model.chat("what is it", [picture(1)]))
    model.reset()
    list(model.chat("how many", [picture(1)]))
    assert model.last_timings is not None
    begins_alike = 1 + len(bundle_ids(SYSTEM + "USER: ")) + bundles.NUM_TOKENS
    assert model.last_timings.reused_tokens >= begins_alike


def test_the_least_recently_used_picture_is_forgotten_first(bundle: Bundle) -> None:
    model = scripted_model(bundle, "a")
    model._encoder._cache_bytes = 2 * bundles.NUM_TOKENS * bundles.HIDDEN * 4
    model.encode([picture(1), picture(2), picture(1), picture(3)])
    assert counts(model)[0] == 3
    model.encode([picture(1), picture(3)])
    assert counts(model)[0] == 3
    model.encode([picture(2)])
    assert counts(model)[0] == 4


def test_a_reused_context_gives_the_answers_of_an_empty_one(model: Model) -> None:
    turns: list[tuple[str, list[Picture]]] = [
        ("what is this", [picture(1)]),
        ("and this", [picture(2)]),
        ("why", []),
    ]
    answers: dict[bool, list[str]] = {False: [], True: []}
    reused = {}
    for disturb in answers:
        model.forget()
        for question, pictures in turns:
            if disturb:
                model.logits([("other", None)])  # leaves only the system text of the conversation
            answers[disturb].append("".join(model.chat(question, pictures, max_tokens=8)))
        assert model.last_timings is not None
        reused[disturb] = model.last_timings.reused_tokens
    assert answers[True] == answers[False]
    assert reused[True] + 20 < reused[False]


def test_logits_have_a_row_for_every_position_and_agree_with_the_answer(model: Model) -> None:
    turns = [("<image>\nwhat is this", None)]
    logits = model.logits(turns, [picture(4)])
    ids = model.tokenize(turns)
    assert logits.shape == (len(ids) - 1 + bundles.NUM_TOKENS, bundles.VOCAB)
    pieces = list(model.chat("what is this", [picture(4)], max_tokens=1))
    expected = model._tokenizer.decode([int(logits[-1].argmax())]).strip()
    assert "".join(pieces) == expected


def test_encode_gives_the_pictures_in_order(model: Model) -> None:
    rows = model.encode([picture(1), picture(2)])
    assert rows.shape == (2, bundles.NUM_TOKENS, bundles.HIDDEN)
    np.testing.assert_array_equal(model.encode([picture(2)])[0], rows[1])
    assert model.encode([]).shape == (0, bundles.NUM_TOKENS, bundles.HIDDEN)


def test_pictures_may_be_paths_contents_or_images(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture(5).save(path)
    rows = model.encode([path, str(path), path.read_bytes(), picture(5)])
    for other in rows[1:]:
        np.testing.assert_array_equal(other, rows[0])


def test_a_seed_repeats_an_answer_and_another_one_does_not(bundle: Bundle) -> None:
    with open_bundle(bundle.root, threads=1) as model:
        answers = []
        for seed in (1, 1, 2):
            model.reset()
            answers.append("".join(model.chat("say", max_tokens=20, temperature=1.5, seed=seed)))
    assert answers[0] == answers[1] != answers[2]


def test_top_k_one_is_greedy(bundle: Bundle) -> None:
    with open_bundle(bundle.root, threads=1) as model:
        greedy = "".join(model.chat("say", max_tokens=12))
        model.reset()
        assert "".join(model.chat("say", max_tokens=12, temperature=3, top_k=1, seed=5)) == greedy


def test_timings_count_every_stage_and_token(model: Model) -> None:
    list(model.chat("what is this", [picture(1)], max_tokens=5))
    timings = model.last_timings
    assert timings is not None
    assert timings.generated_tokens == len(timings.next_token_ms) + 1
    stages = (timings.tokenize_ms, timings.preprocess_ms, timings.vision_ms, timings.prefill_ms)
    assert all(stage > 0 for stage in stages)
    assert sum(stages) <= timings.first_token_ms
    together = timings.first_token_ms + sum(timings.next_token_ms)
    assert timings.total_ms == pytest.approx(together)
    assert timings.prompt_tokens == len(model.tokenize([("<image>\nwhat is this", None)])) + 3


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
    assert model._tokenizer.decode(model.language.seen).count(question.strip()) >= 2 or not question.strip()


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


def test_closing_a_model_twice_is_harmless(model: Model) -> None:
    model.close()
    model.close()
