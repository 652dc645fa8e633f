"""Questions asked anew: the words of the training file, the truth about the picture."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples.nano.questions import QuestionBook, read_records
from tinyllava_edge.errors import DataError


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
    truth = {
        "What is this?": "dog",
        "What kind is it?": "mammal",
        "Is this a mammal?": "yes",
        "Is this a bird?": "no",
    }
    assert dog.picture == Path("pictures/dog.png")
    garbled: list[tuple[str, str]] = []
    for _ in range(100):
        conversations = book.ask(dog, rng)
        assert sorted(len(turns) for turns in conversations) == [1] * 6 + [2]
        answers = [turns[0][1] for turns in conversations]
        assert Counter(answers) == {"dog": 1, "mammal": 2, "yes": 2, "no": 2}
        for turns in conversations:
            assert [q.count("<image>") for q, _ in turns][:1] == [1]
            for question, answer in turns:
                text = question.removeprefix("<image>\n")
                if text in truth:
                    assert answer == truth[text]
                else:
                    garbled.append((text, answer))
    assert 60 < len(garbled) < 400


def test_a_garbled_question_still_names_the_kind_it_asks_about() -> None:
    book = QuestionBook(RECORDS, Path("pictures"))
    rng = random.Random(1)
    asked = {
        turns[0]
        for facts in book.facts
        for _ in range(50)
        for turns in book.ask(facts, rng)
        if turns[0][1] in ("yes", "no")
    }
    assert len(asked) > 40
    assert all("mammal" in question or "bird" in question for question, _ in asked)


def test_the_caption_of_the_pretrain_stage_names_the_kind_before_the_thing() -> None:
    book = QuestionBook(RECORDS, Path("pictures"))
    assert book.caption(book.facts[0]) == (("<image>", "mammal, cat"),)


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


def test_data_are_read_whole_or_refused_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    with pytest.raises(DataError, match=r"train.json: expected a list .*FileNotFoundError"):
        read_records(path, tmp_path)
    for text in ("{", '{"image": "cat.png"}', "[1]", json.dumps([RECORDS[0] | {"conversations": []}])):
        path.write_text(text)
        with pytest.raises(DataError, match="one question and one answer"):
            read_records(path, tmp_path)
    path.write_text(json.dumps(RECORDS))
    for name in ("cat.png", "owl.png"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"1 pictures are missing .*, first dog.png"):
        read_records(path, tmp_path)
    (tmp_path / "dog.png").touch()
    assert read_records(path, tmp_path) == RECORDS
