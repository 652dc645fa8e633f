"""Prompts and where pictures go in them, against strings that the original code made."""

from typing import Any

import pytest

from tests.golden import read_golden
from tinyllava_edge.checkpoint.families import FAMILIES
from tinyllava_edge.errors import PromptError
from tinyllava_edge.prompt import TEMPLATES, Turn, place_markers, template_named

GOLDEN = read_golden("templates.json")
# Upstream's `pretrain` template is defective for a question that has no answer yet: it gives the literal text
# `{{content}}\n:`. Training never uses it so, and we do not copy that.
OURS = {"llama3", "llama3_instruct"}  # docs/sources/language_models.md
LINE = {  # docs/sources/llava_line.md, against strings of that code in tests/integration/test_llava_lines.py
    *("v1", "llava_v1", "bunny", "plain", "chatml_direct", "qwen_1_5", "qwen_2", "qwen_2_5"),
    *("phi3_instruct", "llava_llama_2", "llava_pp_llama3"),
}
OTHERS = {name for name in TEMPLATES if name.startswith("nanovlm")}  # tests/model/test_vlm_nanovlm.py
EVAL_TEMPLATES = [name for name in GOLDEN["templates"] if name != "pretrain"]


def turns_of(conversation: dict[str, Any]) -> list[Turn]:
    return [(question, answer) for question, answer in conversation["turns"]]


def test_the_templates_are_upstreams() -> None:
    assert set(TEMPLATES) - OURS - LINE - OTHERS == set(GOLDEN["templates"])
    assert {
        (t.name, t.system, t.end)
        for t in TEMPLATES.values()
        if t.name not in {"pretrain", *OURS, *LINE, *OTHERS}
    } == {
        (name, GOLDEN["templates"][name]["system"], GOLDEN["templates"][name]["separator"][1])
        for name in EVAL_TEMPLATES
    }


@pytest.mark.parametrize("name", EVAL_TEMPLATES)
@pytest.mark.parametrize("conversation", GOLDEN["conversations"], ids=lambda c: str(c["name"]))
def test_the_prompt_is_upstreams(conversation: dict[str, Any], name: str) -> None:
    prompt = template_named(name).render(place_markers(turns_of(conversation)))
    assert prompt == conversation["prompts"][name]


@pytest.mark.parametrize("conversation", GOLDEN["conversations"], ids=lambda c: str(c["name"]))
def test_the_pretrain_prompt_is_upstreams_where_every_question_is_answered(
    conversation: dict[str, Any],
) -> None:
    turns = turns_of(conversation)
    answered = [(question, answer) for question, answer in turns if answer is not None]
    expected = conversation["prompts"]["pretrain"].removesuffix(
        "" if answered == turns else "<image>{{content}}\n:"
    )
    assert template_named("pretrain").render(place_markers(answered)) == expected


def test_a_template_that_is_not_known_is_refused_with_the_list() -> None:
    with pytest.raises(PromptError, match=r"'vicuna' is not known. Known: phi, llama, gemma"):
        template_named("vicuna")
    assert {family.template for family in FAMILIES.values()} <= set(TEMPLATES)


@pytest.mark.parametrize("text", ["{question}", "{answer}", "{{question}}", "{0}", "%s", "{", "\\1", "{end}"])
def test_braces_in_text_stay_as_they_are(text: str) -> None:
    template = template_named("llama")
    assert template.render([(text, text)]) == f"{template.system}USER: {text} ASSISTANT: {text}</s>"


@pytest.mark.parametrize(
    ("question", "placed"),
    [
        ("What is it?", "<image>\nWhat is it?"),
        ("<image>\nWhat is it?", "<image>\nWhat is it?"),
        ("<image>What is it?", "<image>\nWhat is it?"),
        ("What is it?\n<image>", "<image>\nWhat is it?"),
        ("Look at <image> and tell.", "<image>\nLook at  and tell."),
        ("  spaced  ", "<image>\nspaced"),
        ("", "<image>"),
        ("<image>", "<image>"),
        (" <image> ", "<image>"),
        ("<image><image> Twice?", "<image>\nTwice?"),
    ],
)
def test_the_marker_of_one_picture_moves_to_the_front(question: str, placed: str) -> None:
    assert place_markers([(question, None)], 1) == [(placed, None)]


def test_a_picture_without_a_marker_belongs_to_the_first_question() -> None:
    turns: list[Turn] = [("Hello.", "Hi."), ("What is it?", None)]
    assert place_markers(turns, 1) == [("<image>\nHello.", "Hi."), ("What is it?", None)]
    assert turns == [("Hello.", "Hi."), ("What is it?", None)]


def test_several_markers_collapse_as_upstream_where_pictures_are_not_counted() -> None:
    assert place_markers([("<image> and <image>: same?", None)]) == [("<image>\nand : same?", None)]


def test_markers_of_several_pictures_stay_in_place() -> None:
    question = "Compare <image> with <image>."
    assert place_markers([(question, None)], 2) == [(question, None)]


def test_pictures_may_be_spread_over_several_questions() -> None:
    turns: list[Turn] = [("First <image>", "A cat."), ("And <image>?", None)]
    assert place_markers(turns, 2) == [("<image>\nFirst", "A cat."), ("<image>\nAnd ?", None)]


@pytest.mark.parametrize(
    ("question", "num_pictures", "found"),
    [
        ("No picture.", 2, 0),
        ("<image> only one", 2, 1),
        ("<image> <image> <image>", 2, 3),
        ("<image> but none given", 0, 1),
    ],
)
def test_a_wrong_number_of_markers_is_refused_with_both_numbers(
    question: str, num_pictures: int, found: int
) -> None:
    with pytest.raises(PromptError, match=rf"{num_pictures} picture\(s\) but {found} <image> marker\(s\)"):
        place_markers([(question, None)], num_pictures)


def test_text_only_turns_are_left_alone() -> None:
    turns: list[Turn] = [("  Hi  ", " there "), ("", None)]
    assert place_markers(turns, 0) == turns
    assert place_markers(turns) == turns


def test_a_marker_in_an_answer_is_no_picture() -> None:
    turns: list[Turn] = [("<image> What is it?", "An <image>."), ("Sure?", None)]
    with pytest.raises(PromptError, match=r"1 picture\(s\) but 2 <image> marker\(s\)"):
        place_markers(turns, 1)
