"""Public sets in the folders of TinyLLaVA's own scripts: each question with its own answers and rule."""

import json
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.benchmarks.evals.public_sets import read_public_set, sampled
from tinyllava_edge.benchmarks.evals.question import Question
from tinyllava_edge.errors import DataError, UsageError

SUFFIX = "Answer the question using a single word or phrase."


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


def read(name: str, folder: Path, limit: int = 0) -> tuple[list[Question], list[str]]:
    """Questions of a set, and the faults of those records that hold none."""
    _, records, _ = read_public_set(name, folder, limit)
    questions = [question for record in records if isinstance(record, tuple) for question in record]
    return questions, [str(record) for record in records if isinstance(record, DataError)]


def test_pope_pairs_labels_by_split_picture_and_question(tmp_path: Path) -> None:
    questions, _ = read("pope", write_pope(tmp_path, LABELS))
    found = {(q.type, int(q.id)): q.answers[0] for q in questions}
    assert found == {(s, i): label for s, labels in LABELS.items() for i, label in enumerate(labels)}
    assert questions[0].text.endswith(SUFFIX)
    assert questions[0].image == tmp_path / "val2014" / "1.jpg"
    assert {question.rule for question in questions} == {"pope"}


def test_questions_without_a_label_are_all_named(tmp_path: Path) -> None:
    folder = write_pope(tmp_path, LABELS)
    (folder / "coco" / "coco_pope_random.json").write_text('{"image": "x", "text": "y", "label": "no"}\n')
    questions, faults = read("pope", folder)
    assert len(questions) == 4
    assert [fault.split(" is not in the annotation")[0] for fault in faults] == [
        f"question {number}" for number in (3, 2, 1, 0)
    ]
    (folder / "coco" / "coco_pope_random.json").write_text('{"image": "x", "text": 5}\n')
    with pytest.raises(
        DataError, match=r"coco_pope_random.json: record 0: expected .*'question' as text, found int"
    ):
        read("pope", folder)


def test_textvqa_pairs_by_picture_and_first_line(tmp_path: Path) -> None:
    data: list[dict[str, Any]] = [
        {"image_id": "a1", "question": "What is Written?", "answers": ["stop"] * 10}
    ]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}))
    text = f"What is written?\nReference OCR token: STOP\n{SUFFIX}"
    path = tmp_path / "llava_textvqa_val_v051_ocr.jsonl"
    write_lines(path, [{"question_id": "a1", "image": "a1.jpg", "text": text}])
    (question,), _ = read("textvqa", tmp_path)
    assert (question.text, question.answers, question.rule) == (text, ("stop",) * 10, "textvqa")
    asked = {"question_id": "a1", "image": "a1.jpg", "text": text}
    write_lines(path, [{**asked, "question_id": "b", "image": "b.jpg"}, {**asked, "image": "../b.jpg"}])
    questions, (unknown, outside) = read("textvqa", tmp_path)
    assert (questions, "question b" in unknown, "expected a path inside" in outside) == ([], True, True)
    data[0]["answers"] = ["stop"] * 9
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}))
    write_lines(path, [asked])
    assert "answers: 9, expected those of 10 people" in read("textvqa", tmp_path)[1][0]


def test_mme_finds_its_answers_beside_the_pictures(tmp_path: Path) -> None:
    release = tmp_path / "MME_Benchmark_release_version"
    for folder, stem in (("count", "1"), ("artwork/questions_answers_YN", "1")):
        (release / folder).mkdir(parents=True)
        said = ("Yes", "No") if folder == "count" else ("No", "Yes")
        lines = [f"Is it {n}?  Please answer yes or no.\t{answer}\n" for n, answer in enumerate(said)]
        (release / folder / f"{stem}.txt").write_text("".join(lines))
    asked = [
        {
            "question_id": f"{kind}/1.png",
            "image": f"{kind}/1.png",
            "text": f"Is it {n}?\n{SUFFIX}",
            "category": kind,
        }
        for kind in ("count", "artwork")
        for n in range(2)
    ]
    write_lines(tmp_path / "llava_mme.jsonl", asked)
    questions, faults = read("mme", tmp_path)
    assert [question.answers[0] for question in questions] == ["yes", "no", "no", "yes"]
    assert (faults, questions[0].rule, questions[0].image) == ([], "mme", release / "count" / "1.png")


def test_gqa_scienceqa_and_vqav2_are_where_upstreams_scripts_have_them(tmp_path: Path) -> None:
    asked = {"question_id": "201", "image": "n1.jpg", "text": f"Is it red?\n{SUFFIX}"}
    write_lines(tmp_path / "llava_gqa_testdev_balanced.jsonl", [asked])
    (tmp_path / "data").mkdir()
    answer = {"201": {"imageId": "n1", "question": "Is it red?", "answer": "yes"}}
    (tmp_path / "data" / "testdev_balanced_questions.json").write_text(json.dumps(answer))
    (question,), _ = read("gqa", tmp_path)
    assert (question.answers, question.rule, question.image) == (
        ("yes",),
        "gqa",
        tmp_path / "images" / "n1.jpg",
    )
    talk = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "The answer is B."}]
    records = [{"id": "4", "image": "4/image.png", "conversations": talk}]
    (tmp_path / "llava_test_CQM-A.json").write_text(json.dumps(records))
    (question,), _ = read("scienceqa", tmp_path)
    assert (question.answers, question.image) == (("B",), tmp_path / "images" / "test" / "4" / "image.png")
    write_lines(tmp_path / "llava_vqav2_mscoco_test-dev2015.jsonl", [asked])
    (question,), _ = read("vqav2", tmp_path)
    assert question.answers == ()  # only the challenge's server has them
    with pytest.raises(UsageError, match="Known: pope, textvqa, scienceqa, gqa, vqav2, mme, mmbench"):
        read("vqa", tmp_path)


def test_a_limit_leaves_each_record_in_its_place(tmp_path: Path) -> None:
    _, records, num_all = read_public_set("pope", write_pope(tmp_path, LABELS), 1)
    assert (len(records), num_all) == (8, 8)
    for place, record in enumerate(records):
        assert isinstance(record, tuple)
        assert {question.record for question in record} <= {place}


def test_a_limit_takes_whole_pictures_the_same_ones_each_time() -> None:
    asked = [
        Question(id=str(i), image=Path(f"{i % 5}.jpg"), text="", answers=(), type="all") for i in range(20)
    ]
    chosen = sampled(asked, 2)
    assert len(chosen) == 8
    assert len({asked[i].image for i in chosen}) == 2
    assert chosen == sampled(asked, 2)
    assert sorted(sampled(asked, 0)) == list(range(20))
