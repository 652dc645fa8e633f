"""Questions asked anew: the words of the training file, the truth about the picture."""

import random
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.errors import DataError
from tinyllava_edge.train.questions import QuestionBook


def _records(image: str, name: str, kind: str, about: str, truth: str) -> list[dict[str, Any]]:
    rows = [("name", "What is this?", name), ("kind", "What kind is it?", kind)]
    rows.append(("yesno", f"Is this a {about}?", truth))
    return [
        {
            "id": f"{image}-{type_}",
            "image": image,
            "type": type_,
            "conversations": [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": answer},
            ],
        }
        for type_, question, answer in rows
    ]


RECORDS = [
    *_records("cat.png", "cat", "mammal", "mammal", "yes"),
    *_records("owl.png", "owl", "bird", "bird", "yes"),
    *_records("dog.png", "dog", "mammal", "bird", "no"),
]


def test_every_turn_tells_the_truth_in_words_of_the_data() -> None:
    book = QuestionBook(RECORDS, Path("pictures"))
    rng = random.Random(0)
    dog = next(facts for facts in book.facts if facts.name == "dog")
    lengths, garbled = set(), 0
    for _ in range(300):
        conversation = book.ask(dog, rng)
        lengths.add(len(conversation.turns))
        assert conversation.picture == Path("pictures/dog.png")
        assert [q.count("<image>") for q, _ in conversation.turns] == [1] + [0] * (
            len(conversation.turns) - 1
        )
        for question, answer in conversation.turns:
            text = question.removeprefix("<image>\n")
            expected = {
                "What is this?": "dog",
                "What kind is it?": "mammal",
                "Is this a mammal?": "yes",
                "Is this a bird?": "no",
            }
            garbled += text not in expected
            assert answer == expected.get(text, "mammal")
    assert lengths == {1, 2, 3, 4}
    assert garbled > 20


def test_the_caption_of_the_pretrain_stage_names_the_kind_before_the_thing() -> None:
    book = QuestionBook(RECORDS, Path("pictures"))
    assert book.caption(book.facts[0]).turns == (("<image>", "mammal, cat"),)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([RECORDS[0] | {"type": "colour"}], "type is 'colour'"),
        (RECORDS[:1], "one for its kind"),
    ],
)
def test_records_that_say_too_little_are_refused(records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        QuestionBook(records, Path("pictures"))
