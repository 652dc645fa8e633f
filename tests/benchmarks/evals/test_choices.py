"""Which choice an answer names, against upstream's ScienceQA scorer and VLMEvalKit's matching."""

import pytest

from tests.benchmarks.evals.official import OFFICIAL
from tinyllava_edge.benchmarks.evals.choices import (
    read_choice,
    read_scienceqa,
    score_mmbench,
    score_scienceqa,
)
from tinyllava_edge.benchmarks.evals.question import Question
from tinyllava_edge.benchmarks.evals.rules import RULES
from tinyllava_edge.benchmarks.evals.tables import TablePicture


def test_scienceqa_is_read_and_counted_as_upstream_does() -> None:
    its = OFFICIAL["scienceqa"]
    picture = TablePicture("0", b"", "a picture")
    letter = RULES["scienceqa"].read([its["expected"]])
    questions = [
        Question(
            id=n, image=picture if n % 3 else None, text="?", answers=letter, type="all", rule="scienceqa"
        )
        for n in range(len(its["answers"]))
    ]
    for question, (text, right, letter_read) in zip(questions, its["answers"], strict=True):
        assert read_scienceqa(text) == letter_read, text
        assert RULES["scienceqa"].credit(question, text) == right, text
    found = score_scienceqa(questions, [text for text, *_ in its["answers"]])
    assert found["score"] == pytest.approx(its["accuracy"], abs=0.005)  # printed with two places
    assert found["img"] == pytest.approx(its["img_accuracy"], abs=0.005)
    assert found["unparsed"] == sum(not letter_read for *_, letter_read in its["answers"])


def test_mmbench_is_read_as_vlmevalkit_does_without_a_judge() -> None:
    its = OFFICIAL["mmbench"]
    for text, expected in its["answers"]:
        assert read_choice(text, its["options"]) == expected, text
    assert {"", "Z", "A", "B", "C", "D"} == {expected for _, expected in its["answers"]}


def rotated(index: int, answer: str) -> Question:
    options = {"A": "x", "B": "y"}
    return Question(id=index, image=None, text="?", answers=(answer,), type="all", options=options)


def test_a_question_whose_choices_are_rotated_is_right_in_all_rows() -> None:
    rows = [rotated(1, "A"), rotated(1_000_001, "B"), rotated(2, "A"), rotated(1_000_002, "B")]
    found = score_mmbench(rows, ["A", "B", "A", "A"])
    assert (found["score"], found["kind"], found["questions"]) == (50, "circular", 2)
    assert score_mmbench(rows[::2], ["A", "it is"])["kind"] == "vanilla"
