"""POPE and TextVQA on made-up answers, against figures worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.benchmarks.evals.pope import SUFFIX, parse_answer, read_pope, score_pope
from tinyllava_edge.benchmarks.evals.public_sets import sampled
from tinyllava_edge.benchmarks.evals.questions import Question
from tinyllava_edge.benchmarks.evals.textvqa import answer_score, normalised, read_textvqa, score_textvqa
from tinyllava_edge.errors import DataError


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_pope(folder: Path, labels: dict[str, list[str]]) -> Path:
    """Questions about one picture each, in another order than their labels."""
    asked = []
    for split in ("random", "popular", "adversarial"):
        records = [
            {"question_id": i, "image": f"{i}.jpg", "text": f"Is there a {split} thing {i}?", "label": label}
            for i, label in enumerate(labels[split])
        ]
        write_lines(folder / "coco" / f"coco_pope_{split}.json", records)
        asked += [
            {"question_id": i, "image": r["image"], "text": f"{r['text']}\n{SUFFIX}", "category": split}
            for i, r in enumerate(records)
        ]
    write_lines(folder / "llava_pope_test.jsonl", asked[::-1])
    return folder


LABELS = {"random": ["yes", "yes", "no", "no"], "popular": ["yes", "no"], "adversarial": ["yes", "no"]}


def test_pope_pairs_labels_by_split_picture_and_question(tmp_path: Path) -> None:
    questions = read_pope(write_pope(tmp_path, LABELS))
    found = {(q.type, int(q.id)): q.answer for q in questions}
    assert found == {(s, i): label for s, labels in LABELS.items() for i, label in enumerate(labels)}
    assert questions[0].text.endswith(SUFFIX)
    assert questions[0].image == tmp_path / "val2014" / "1.jpg"


def test_popes_figures_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    questions = read_pope(write_pope(tmp_path, LABELS))
    said = {
        ("random", 0): "Yes", ("random", 1): "No, there is not.", ("random", 2): "Yes.", ("random", 3): "no",
        ("popular", 0): "Yes", ("popular", 1): "No",
        ("adversarial", 0): "No", ("adversarial", 1): "Perhaps",
    }  # fmt: skip
    result = score_pope(questions, [said[q.type, int(q.id)] for q in questions])
    # random: one hit of two said and of two true; adversarial: "Perhaps" counts as yes, a miss.
    random = result["splits"]["random"]
    assert (random["accuracy"], random["precision"], random["recall"], random["f1"]) == (50, 50, 50, 50)
    assert random["yes_ratio"] == 50
    assert result["splits"]["popular"]["f1"] == 100
    adversarial = result["splits"]["adversarial"]
    assert (adversarial["accuracy"], adversarial["f1"], adversarial["unparsed"]) == (0, 0, 1)
    assert result["score"] == 50  # (50 + 100 + 0) / 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", ("yes", True)),
        ("No, I do not see it", ("no", True)),
        ("There is not one. Yes", ("no", True)),
        ("nothing", ("yes", False)),
        ("", ("yes", False)),
    ],
)
def test_an_answer_is_read_as_llavas_evaluation_reads_it(text: str, expected: tuple[str, bool]) -> None:
    assert parse_answer(text) == expected


def test_a_question_without_a_label_is_named(tmp_path: Path) -> None:
    folder = write_pope(tmp_path, LABELS)
    (folder / "coco" / "coco_pope_random.json").write_text('{"image": "x", "text": "y", "label": "no"}\n')
    with pytest.raises(DataError, match="question 3 is not in the annotation"):
        read_pope(folder)
    (folder / "coco" / "coco_pope_random.json").write_text('{"image": "x"}\n')
    with pytest.raises(DataError, match="line 1: expected an object with image, text, label"):
        read_pope(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Red Bus.", "red bus"),
        ("two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("dont", "don't"),
        ("Coca-Cola", "coca cola"),
        ("well- known", "well known"),
        ("McDonald's", "mcdonald 's"),
        ("Is it?", "is it"),
    ],
)
def test_spelling_is_made_alike(text: str, expected: str) -> None:
    assert normalised(text) == expected


def test_textvqas_figures_are_those_worked_out_by_hand() -> None:
    people = ["stop"] * 4 + ["Stop sign", "stop sign", "STOP SIGN", "go", "go", "left"]
    # Three agree: each of them sees two others (2/3), the other seven see three (1): (3 * 2/3 + 7) / 10.
    assert answer_score("The stop sign.", people) == pytest.approx(0.9)
    assert answer_score("stop", people) == 1.0  # four agree
    assert answer_score("go", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert answer_score("left", people) == pytest.approx(9 * (1 / 3) / 10)
    assert answer_score("right", people) == 0.0
    assert score_textvqa([people, people], ["stop", "right"])["score"] == 50


def test_textvqa_pairs_by_picture_and_first_line(tmp_path: Path) -> None:
    data: list[dict[str, Any]] = [
        {"image_id": "a1", "question": "What is Written?", "answers": ["stop"] * 10}
    ]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}))
    text = f"What is written?\nReference OCR token: STOP\n{SUFFIX}"
    path = tmp_path / "llava_textvqa_val_v051_ocr.jsonl"
    write_lines(path, [{"question_id": "a1", "image": "a1.jpg", "text": text}])
    questions, people = read_textvqa(tmp_path)
    assert questions[0].text == text
    assert people == [("stop",) * 10]
    write_lines(path, [{"question_id": "b", "image": "../b.jpg", "text": text}])
    with pytest.raises(DataError, match="question b"):
        read_textvqa(tmp_path)
    write_lines(path, [{"question_id": "a1", "image": "../b.jpg", "text": text}])
    with pytest.raises(DataError, match="expected a path inside"):
        read_textvqa(tmp_path)
    data[0]["answers"] = [7] * 10
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}))
    with pytest.raises(DataError, match="expected TextVQA's 'data'"):
        read_textvqa(tmp_path)


def test_a_limit_takes_whole_pictures_the_same_ones_each_time() -> None:
    asked = [
        Question(id=str(i), image=Path(f"{i % 5}.jpg"), text="", answer="", type="all") for i in range(20)
    ]
    chosen = sampled(asked, 2)
    assert len(chosen) == 8
    assert len({asked[i].image for i in chosen}) == 2
    assert chosen == sampled(asked, 2)
    assert sorted(sampled(asked, 0)) == list(range(20))
