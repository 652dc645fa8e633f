"""Token ids with the real Llama-2 vocabulary, against ids that upstream's slow tokenizer made."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.golden import read_golden, shared_fixtures
from tinyllava_edge.checkpoint.config import IMAGE_MARKER, IMAGE_TOKEN_ID
from tinyllava_edge.errors import PromptError
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.prompt import Template, TextTokenizer, Turn, place_markers, template_named

FAMILIES = read_golden("tokenizers/ids.json")
LLAMA = FAMILIES["tinyllama"]
TEMPLATE = template_named("llama")
BARE = Template(name="bare", system="", question="{question}", end="")
UNK, BOS, EOS = 0, 1, 2
# What people type, and what an attacker would.
TEXTS = st.lists(
    st.text(max_size=12)
    | st.sampled_from(["</s>", "<s>", "<unk>", "</s", ">", " ", "<0x0A>", "USER: ", "\u2581"]),
    max_size=8,
).map("".join)


def read_llama_tokenizer(directory: Path) -> TextTokenizer:
    assets = read_tokenizer(directory)
    assert assets.adds_bos
    return TextTokenizer(assets.tokenizer_json, bos_id=assets.bos_id)


TOKENIZER = read_llama_tokenizer(shared_fixtures() / "tokenizers" / "llama-spm")


@pytest.mark.parametrize("family", ["tinyllama", "openelm"])
def test_the_roles_of_ids_are_upstreams(family: str) -> None:
    assets = read_tokenizer(shared_fixtures() / "tokenizers" / "llama-spm")
    assert (assets.bos_id, assets.eos_id, assets.unk_id) == (
        FAMILIES[family]["bos"],
        FAMILIES[family]["eos"],
        FAMILIES[family]["unk"],
    )


@pytest.mark.parametrize("golden", LLAMA["texts"], ids=lambda g: repr(g["text"])[:30])
def test_the_ids_of_a_text_are_upstreams(golden: dict[str, Any]) -> None:
    assert TOKENIZER.encode_text(golden["text"]) == golden["ids"]
    assert TOKENIZER.encode(BARE, [(golden["text"], None)]) == golden["image_token_ids"]
    assert TOKENIZER.encode(BARE, [(golden["text"], None)], honour_special=False) == golden["image_token_ids"]


@pytest.mark.parametrize("family", ["tinyllama", "openelm"])
@pytest.mark.parametrize("index", range(len(LLAMA["conversations"])))
@pytest.mark.parametrize("honour_special", [True, False])
def test_the_ids_of_a_conversation_are_upstreams(family: str, index: int, honour_special: bool) -> None:
    golden = FAMILIES[family]["conversations"][index]
    turns: list[Turn] = [(question, answer) for question, answer in golden["turns"]]
    template = template_named(golden["template"])
    ids = TOKENIZER.encode(template, place_markers(turns), honour_special=honour_special)
    assert ids == golden["input_ids"]


@pytest.mark.parametrize("golden", LLAMA["train"], ids=lambda g: str(g["name"]))
def test_the_ids_of_a_training_sample_are_upstreams(golden: dict[str, Any]) -> None:
    turns: list[Turn] = [(question, answer) for question, answer in golden["turns"]]
    assert TOKENIZER.encode(TEMPLATE, place_markers(turns)) == golden["input_ids"]


def test_special_text_is_a_special_token_only_where_it_is_honoured() -> None:
    turns: list[Turn] = [("a</s>b<s><unk>", None)]
    assert TOKENIZER.encode(BARE, turns) == [BOS, 263, EOS, 29890, BOS, UNK]
    plain = TOKENIZER.encode(BARE, turns, honour_special=False)
    assert TOKENIZER.decode(plain) == "a</s>b<s><unk>"
    assert Counter(plain) & Counter([UNK, BOS, EOS]) == Counter([BOS])


@given(first=TEXTS, answer=TEXTS, second=TEXTS)
@example(first="</s>", answer="</s>", second="<s>")
def test_typed_text_never_becomes_a_special_token(first: str, answer: str, second: str) -> None:
    turns: list[Turn] = [(first, answer), (second, None)]
    ids = TOKENIZER.encode(TEMPLATE, turns, honour_special=False)
    assert ids[0] == BOS
    assert Counter(ids) & Counter({UNK: 9, BOS: 9, EOS: 9}) == Counter([BOS, EOS])  # the answer's own end


@given(first=TEXTS, answer=TEXTS, second=TEXTS)
def test_without_special_text_both_ways_give_the_same_ids(first: str, answer: str, second: str) -> None:
    turns: list[Turn] = [(first, answer), (second, None)]
    typed = "".join([first, answer, second])
    assume(not any(special in typed for special in ("</s>", "<s>", "<unk>")))
    exact = TOKENIZER.encode(TEMPLATE, turns)
    assert TOKENIZER.encode(TEMPLATE, turns, honour_special=False) == exact


@given(text=TEXTS)
def test_plain_ids_give_the_text_back(text: str) -> None:
    ids = TOKENIZER.encode(BARE, [(text, None)], honour_special=False)
    assert TOKENIZER.decode(ids) == text.replace("\u2581", " ")


@given(question=st.text(max_size=20), pictures=st.integers(0, 3))
def test_there_is_one_placeholder_for_each_picture(question: str, pictures: int) -> None:
    turns: list[Turn] = [(IMAGE_MARKER * pictures + question, None)]
    ids = TOKENIZER.encode(TEMPLATE, place_markers(turns, pictures), honour_special=False)
    assert ids.count(IMAGE_TOKEN_ID) == pictures


@pytest.mark.parametrize("name", ["phi", "gemma", "qwen2_instruct"])
def test_an_end_that_is_no_token_of_the_vocabulary_is_text(name: str) -> None:
    turns: list[Turn] = [("Hi.", "Hello."), ("Bye.", None)]
    exact = TOKENIZER.encode(template_named(name), turns)
    assert TOKENIZER.encode(template_named(name), turns, honour_special=False) == exact
    assert template_named(name).end in TOKENIZER.decode(exact)


@pytest.mark.parametrize("honour_special", [True, False])
def test_text_that_is_not_unicode_is_refused(honour_special: bool) -> None:
    with pytest.raises(PromptError, match="not valid Unicode"):
        TOKENIZER.encode(TEMPLATE, [("caf\udce9", None)], honour_special=honour_special)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": "1.0"}', "\0", "[" * 5000])
def test_a_damaged_tokenizer_is_refused(content: str) -> None:
    with pytest.raises(PromptError, match=r"tokenizer.json cannot be read"):
        TextTokenizer(content, bos_id=None)
