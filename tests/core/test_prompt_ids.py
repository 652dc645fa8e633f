"""Token ids with the real Llama-2 vocabulary, against ids that upstream's slow tokenizer made."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.golden import read_golden, shared_fixtures
from tinyllava_edge import prompt
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


def read_llama_tokenizer(directory: Path, kind: type[TextTokenizer] = TextTokenizer) -> TextTokenizer:
    assets = read_tokenizer(directory)
    assert assets.adds_bos
    return kind(assets.tokenizer_json, bos_id=assets.bos_id)


class WithoutShortcut(TextTokenizer):
    """Builds the second tokenizer for every text."""

    def _has_only_marks(self, *prompt: object) -> bool:
        return False


TOKENIZER = read_llama_tokenizer(shared_fixtures() / "tokenizers" / "llama-spm")
SLOW = read_llama_tokenizer(shared_fixtures() / "tokenizers" / "llama-spm", WithoutShortcut)


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
    assert SLOW.encode(TEMPLATE, turns, honour_special=False) == exact
    assert TOKENIZER.encode(TEMPLATE, turns, honour_special=False) == exact


def small_tokenizer(*added: tuple[str, dict[str, bool]]) -> str:
    """Letters, each a token, and added tokens with their flags; upper case is normalized away."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokens = [{"id": 9 + i, "content": t, "special": True, **flags, **f} for i, (t, f) in enumerate(added)]
    lower = [{"type": "Replace", "pattern": {"String": u}, "content": u.lower()} for u in "AB"]
    vocab = {letter: index for index, letter in enumerate("abcd<>/: ")}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    return json.dumps(
        {"added_tokens": tokens, "normalizer": {"type": "Sequence", "normalizers": lower}, "model": model}
    )


SMALL: dict[str, list[tuple[str, dict[str, bool]]]] = {
    "plain": [("</a>", {}), ("<b>", {})],
    "normalized": [("</a>", {"normalized": True}), ("<b>", {"normalized": True})],
    "single words": [("</a>", {}), ("<b>", {"single_word": True}), ("b>c", {"special": False})],
    "stripped": [("</a>", {"lstrip": True, "rstrip": True}), ("<b>", {"lstrip": True})],
    "an end that overlaps itself": [("aa", {}), ("aab", {"special": False}), ("ba", {})],
    "an end that is not special": [("</a>", {"special": False}), (">:", {}), ("a<", {"special": False})],
    "marks of the template": [("</a>", {}), ("<|a|>", {}), ("<b>", {}), ("a|", {"special": False})],
    "a marker": [("</a>", {}), (IMAGE_MARKER, {})],
}
TYPED = st.lists(st.sampled_from([*"abAB<>/: ", "</a>", "</A>", "<b>", "<B>", "<b>c", "aa"]), max_size=6).map(
    "".join
)


@cache
def small_pair(kind: str) -> tuple[TextTokenizer, TextTokenizer]:
    content = small_tokenizer(*SMALL[kind])
    return TextTokenizer(content, bos_id=None), WithoutShortcut(content, bos_id=None)


@pytest.mark.parametrize("kind", SMALL)
@given(first=TYPED, answer=TYPED, second=TYPED, marked=st.booleans())
def test_the_shortcut_for_ordinary_text_changes_no_id(
    kind: str, first: str, answer: str, second: str, marked: bool
) -> None:
    quick, slow = small_pair(kind)
    template = Template(name="small", system="", question="<|a|>b: {question}a:", end=SMALL[kind][0][0])
    turns: list[Turn] = [(IMAGE_MARKER * marked + first, answer), (second, None)]
    found = quick.encode(template, turns, honour_special=False)
    assert found == slow.encode(template, turns, honour_special=False)


def test_only_typed_special_text_needs_a_second_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer(small_tokenizer(*SMALL["plain"]), bos_id=None)
    monkeypatch.setattr(prompt, "open_tokenizer", lambda *_, **__: pytest.fail("a second tokenizer"))
    template = Template(name="small", system="", question="{question}:", end="</a>")
    assert tokenizer.encode(template, [("ab", "c"), ("<d", None)], honour_special=False).count(9) == 1
    with pytest.raises(pytest.fail.Exception):
        tokenizer.encode(template, [("a</a>", None)], honour_special=False)


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
