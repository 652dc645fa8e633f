"""A model's turns: what is said, what is computed, what is reused."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.runtimes import bundles
from tests.runtimes.bundles import picture
from tests.runtimes.scripted_models import SYSTEM, CountingLanguage, bundle_ids, counts, scripted_model
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.errors import BackendError
from tinyllava_edge.image import Picture
from tinyllava_edge.runtimes.model import Model, open_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(params=["scripted", "onnxruntime+llamacpp", "openvino+llamacpp"])
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
    expected = model.tokenizer.decode([int(logits[-1].argmax())]).strip()
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


def test_closing_a_model_twice_is_harmless(model: Model) -> None:
    model.close()
    model.close()


def test_a_closed_model_refuses_every_use_and_its_last_answer_stays(model: Model) -> None:
    answer = model.chat("what", max_tokens=5)
    shown = next(answer)
    model.close()
    assert list(answer) == []
    uses: list[Callable[[], object]] = [
        lambda: model.chat("why"),
        lambda: model.encode([picture(1)]),
        lambda: model.encode([]),
        lambda: model.logits([("why", None)]),
        model.reset,
        model.forget,
    ]
    for use in uses:
        with pytest.raises(BackendError, match="the model is closed"):
            use()
    assert model.turns == [("what", shown)]
    assert model.tokenize([("what", None)])
