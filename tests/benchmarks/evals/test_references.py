"""Answers that stand apart from their questions."""

import json
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.benchmarks.evals.questions import read_records
from tinyllava_edge.benchmarks.evals.references import read_references
from tinyllava_edge.errors import DataError

ASKED = [
    {
        "question_id": 1,
        "image": "n1.jpg",
        "text": "Is it red?\nAnswer the question using a single word or phrase.",
    },
    {"question_id": 2, "image": "n2.jpg", "text": "What is it?"},
]
PEOPLE = [{"answer": "yes", "answer_id": n} for n in range(10)]


def answered(folder: Path, *references: Any) -> list[Any]:
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ASKED))
    paths = []
    for number, content in enumerate(references):
        paths.append(folder / f"r{number}.json")
        paths[-1].write_text(json.dumps(content))
    return read_records(folder / "q.jsonl", folder, references=paths)


@pytest.mark.parametrize(
    ("references", "rule"),
    [
        ([{"question_id": 2, "answer": "cat"}, {"question_id": 1, "answers": ["yes"]}], "exact"),
        ([{"image": "n1.jpg", "question": "is it  RED?", "answer": "yes"}], "exact"),
        ({"1": {"imageId": "n1", "question": "other text", "answer": "yes"}}, "gqa"),
        ({"annotations": [{"question_id": 1, "answers": PEOPLE, "answer_type": "yes/no"}]}, "vqav2"),
        ({"data": [{"image_id": "n1", "question": "Is it red?", "answers": ["yes"] * 10}]}, "textvqa"),
        ({"data": [{"image_id": "1", "question": "Is it red?", "answers": ["yes"] * 10}]}, "textvqa"),
    ],
)
def test_a_question_finds_its_answer_by_id_or_by_what_it_asks(
    tmp_path: Path, references: Any, rule: str
) -> None:
    (first,), second = answered(tmp_path, references)
    assert (set(first.answers), first.rule) == ({"yes"}, rule)
    assert first.type == ("yes/no" if rule == "vqav2" else "all")
    if isinstance(second, DataError):
        assert str(second) == "question 2 is not in the annotation files: r0.json."
    else:
        assert second[0].answers == ("cat",)


def test_answers_that_differ_under_one_key_are_no_answer(tmp_path: Path) -> None:
    both = [
        {"question_id": 1, "answer": "yes"},
        {"question_id": 1, "answer": "no"},
        {"question_id": 2, "answer": "x"},
    ]
    first, (second,) = answered(tmp_path, both)
    assert "question 1 has answers that differ in the annotation files: r0.json." in str(first)
    assert second.answers == ("x",)
    (first,), _ = answered(tmp_path, both[:1], both[2:])  # of several files
    assert first.answers == ("yes",)


def test_of_two_records_of_textvqa_the_last_counts_as_for_its_scorer(tmp_path: Path) -> None:
    two = [{"image_id": "n1", "question": "Is it red?", "answers": [said] * 10} for said in ("no", "yes")]
    (first,), _ = answered(tmp_path, {"data": two})
    assert set(first.answers) == {"yes"}


def test_mmbenchs_rule_wants_options_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({**ASKED[0], "answer": "B"}))
    (fault,) = read_records(tmp_path / "q.jsonl", tmp_path, rule="mmbench")
    assert "no options by letter" in str(fault)


def test_scienceqas_problems_give_the_letter(tmp_path: Path) -> None:
    problems = {
        id_: {"choices": ["x", "y"], "answer": place, "image": None} for id_, place in (("1", 1), ("2", 0))
    }
    (first,), (second,) = answered(tmp_path, problems)
    assert (first.answers, second.answers, first.rule) == (("B",), ("A",), "scienceqa")
    problems["1"]["answer"] = 7
    with pytest.raises(DataError, match="record 0: expected choices and the answer's place"):
        answered(tmp_path, problems)


def test_every_bad_reference_is_named_up_to_five(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{"question_id": n, "answer": {}} for n in range(7)]))
    with pytest.raises(DataError, match=r"r.json: record 4: answer is .*\(and 2 more\)"):
        read_references([path])
