"""Ids become text in pieces that never have to be taken back."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.runtimes.bundles import llama_tokenizer
from tinyllava_edge.errors import UsageError
from tinyllava_edge.runtimes.answer_text import AnswerText

LLAMA = Tokenizer.from_str(llama_tokenizer())
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
FEW_LETTERS = st.text("ab \n\N{EURO SIGN}", max_size=30)


def gpt2_tokenizer() -> Tokenizer:
    """Bytes as GPT-2 spells them, without merges: every character of two bytes and more is in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


GPT2 = gpt2_tokenizer()


def pieces_of(tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    answer = AnswerText(lambda some: str(tokenizer.decode(list(some))), stop)
    pieces = []
    for token in ids:
        pieces.append(answer.push(token))
        if answer.stopped:
            break
    pieces.append(answer.finish())
    assert "".join(pieces) == answer.text
    return pieces


@pytest.mark.parametrize("tokenizer", [LLAMA, GPT2], ids=["llama", "gpt2"])
@given(text=ANY_TEXT)
def test_the_pieces_together_are_the_decoded_answer_stripped(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(pieces_of(tokenizer, ids)) == str(tokenizer.decode(ids)).strip()


@pytest.mark.parametrize("tokenizer", [LLAMA, GPT2], ids=["llama", "gpt2"])
@given(text=st.text("a\N{EURO SIGN}\N{GRINNING FACE}\N{FAMILY}\u0301\u200d\U0001f1e9", max_size=20))
def test_no_piece_has_a_broken_character(tokenizer: Tokenizer, text: str) -> None:
    pieces = pieces_of(tokenizer, tokenizer.encode(text, add_special_tokens=False).ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_text_is_handed_out_as_soon_as_it_is_certain() -> None:
    ids = LLAMA.encode("the cat", add_special_tokens=False).ids
    texts = [LLAMA.id_to_token(token) for token in ids]
    assert texts == ["\u2581the", "\u2581", "c", "a", "t"]
    assert pieces_of(LLAMA, ids) == ["the", "", " c", "a", "t", ""]


def first_complete(text: str, stop: Sequence[str]) -> str:
    """The text before the stop string that is complete first, reading character by character."""
    for end in range(1, len(text) + 1):
        starts = [end - len(one) for one in stop if text[:end].endswith(one)]
        if starts:
            return text[: min(starts)]
    return text


@pytest.mark.parametrize("tokenizer", [LLAMA, GPT2], ids=["llama", "gpt2"])
@given(text=FEW_LETTERS, stop=st.lists(st.text("ab \n\N{EURO SIGN}", min_size=1, max_size=4), max_size=3))
def test_a_stop_string_ends_the_answer_wherever_the_tokens_end(
    tokenizer: Tokenizer, text: str, stop: list[str]
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = pieces_of(tokenizer, ids, stop)
    whole = first_complete(str(tokenizer.decode(ids)), stop)
    assert "".join(pieces) == whole.strip()


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_decided() -> None:
    ids = LLAMA.encode("one usor user x", add_special_tokens=False).ids
    pieces = pieces_of(LLAMA, ids, ["user"])
    assert "".join(pieces) == "one usor"
    assert "us" not in pieces  # came only with the o


def test_an_unfinished_character_at_the_end_is_shown_as_one() -> None:
    euro = LLAMA.encode("a\N{EURO SIGN}", add_special_tokens=False).ids
    assert "".join(pieces_of(LLAMA, euro[:-1])) == str(LLAMA.decode(euro[:-1])).strip()


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        AnswerText(str, ["x", ""])
