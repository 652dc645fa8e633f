"""Scoring: what counts as right, intervals over pictures, and the two forms of question files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tinyllava_edge.benchmarks.evals.questions import Question, read_questions
from tinyllava_edge.benchmarks.evals.scores import compare, credit, score
from tinyllava_edge.errors import DataError


def _question(answer: str, *, image: str = "a.png", kind: str = "kind") -> Question:
    return Question(id="q", image=Path(image), text="What?", answers=(answer,), type=kind)


def _write(folder: Path, records: Any) -> Path:
    path = folder / "questions.json"
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize(
    ("answer", "right"),
    [("cat", True), (" Cat. ", True), ("CAT", True), ("a cat", False), ("", False), ("cat..", False)],
)
def test_case_spaces_and_one_full_stop_do_not_matter(answer: str, right: bool) -> None:
    assert credit(_question("cat"), answer) == right


def test_scores_are_counted_by_type_and_over_all() -> None:
    questions = [_question("cat"), _question("yes", kind="yesno"), _question("no", kind="yesno")]
    scores = score(questions, ["cat", "yes", "yes"])
    assert scores["kind"].accuracy == 1.0
    assert scores["yesno"].accuracy == 0.5
    assert scores["all"].accuracy == pytest.approx(2 / 3)
    assert [scores[name].questions for name in ("kind", "yesno", "all")] == [1, 2, 3]


def test_questions_about_one_picture_widen_the_interval() -> None:
    right = [index % 2 == 0 for index in range(40) for _ in range(10)]
    answers = ["cat" if hit else "dog" for hit in right]
    apart = score([_question("cat", image=f"{index}.png") for index in range(400)], answers)["all"]
    together = score([_question("cat", image=f"{index // 10}.png") for index in range(400)], answers)["all"]
    apart_width, together_width = (s.interval[1] - s.interval[0] for s in (apart, together))
    # Independent: 2 * 1.96 * sqrt(.25 / 400) = .098. Ten at a time: the same with 40 in the place of 400.
    assert apart_width == pytest.approx(0.098, rel=0.15)
    assert together_width == pytest.approx(0.31, rel=0.15)


@pytest.mark.parametrize(("answer", "low", "high"), [("cat", 0.839, 1.0), ("dog", 0.0, 0.161)])
def test_where_all_or_none_are_right_the_interval_is_wilsons(answer: str, low: float, high: float) -> None:
    questions = [_question("cat", image=f"{index // 3}.png") for index in range(60)]  # 20 pictures
    assert score(questions, [answer] * 60)["all"].interval == pytest.approx((low, high), abs=1e-3)


def test_two_variants_that_never_differ_may_differ_on_other_pictures() -> None:
    questions = [_question("cat", image=f"{index}.png") for index in range(20)]
    low, high = compare(questions, ["cat"] * 20, ["cat"] * 20)["difference_ci95"]
    assert (low, high) == pytest.approx((-0.161, 0.161), abs=1e-3)


def test_two_variants_are_compared_answer_by_answer() -> None:
    questions = [_question("cat", image=f"{index}.png") for index in range(4)]
    result = compare(questions, ["cat", "cat", "dog", "cow"], ["cat", "dog", "cat", "cow"])
    assert result["agreement"] == 0.5
    assert result["difference"] == 0.0
    assert result["difference_ci95"][0] < 0 < result["difference_ci95"][1]


def test_both_forms_of_question_files_are_read_alike(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    messages = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "cat"},
        {"from": "human", "value": "Is it grey?"},
        {"from": "gpt", "value": "no"},
    ]
    llava = _write(tmp_path, [{"id": "1", "image": "a.png", "type": "t", "conversations": messages}])
    first = read_questions(llava, tmp_path)
    plain = [
        {"id": "1", "image": "a.png", "type": "t", "question": "What is it?", "answer": "cat"},
        {"id": "1", "image": "a.png", "type": "t", "question": "Is it grey?", "answer": "no"},
    ]
    assert read_questions(_write(tmp_path, plain), tmp_path) == first
    assert [(q.text, q.answers) for q in first] == [("What is it?", ("cat",)), ("Is it grey?", ("no",))]


@pytest.mark.parametrize(
    ("records", "named"),
    [
        ([], "the list is empty"),
        (7, "neither JSON nor one record a line"),
        (["text"], "record 0"),
        ([{"question": "?", "answer": True}], "record 0: answer is True"),
        ([{"question": "?"}], "record 0: no answer"),
        ([{"question": "?", "answer": "!", "image": "gone.png"}], "gone.png"),
        ([{"question": "?", "answer": "!", "image": "../a.png"}], "../a.png"),
        ([{"conversations": [{"from": "human", "value": "?"}]}], "record 0"),
        ([{"question": "?", "answer": "!"}, {"id": 1, "conversations": []}], "record 1: .*pairs of messages"),
    ],
)
def test_a_damaged_question_file_is_refused(tmp_path: Path, records: Any, named: str) -> None:
    with pytest.raises(DataError, match=named):
        read_questions(_write(tmp_path, records), tmp_path)


def test_pope_and_llava_question_files_are_read_by_their_own_keys(tmp_path: Path) -> None:
    """One record a line, with other names for the same things; a `.json` name says nothing."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    lines = [
        {"question_id": 1, "image": "a.png", "text": "Is there a cat?", "label": "no"},
        {"question_id": 2, "image": "a.png", "text": "What?", "label": "dog", "category": "kind"},
    ]
    path = tmp_path / "coco_pope_random.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_questions(path, tmp_path)
    assert [(q.id, q.text, q.answers, q.type) for q in found] == [
        (1, "Is there a cat?", ("no",), "all"),
        (2, "What?", ("dog",), "kind"),
    ]


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_bytes(b"\xff\xfe[")
    with pytest.raises(DataError, match="not UTF-8"):
        read_questions(path, tmp_path)
    path.write_text("[1, 2")
    with pytest.raises(DataError, match="neither JSON nor one record a line"):
        read_questions(path, tmp_path)
