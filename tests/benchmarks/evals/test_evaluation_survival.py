"""`eval` on nano: killed, on damaged data that is then mended, and its files as upstream reads them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.benchmarks.evals.conftest import Run
from tinyllava_edge.append_jsonl import work_path

COLOURS = {"a": (220, 30, 30), "b": (30, 30, 220), "c": (240, 240, 60)}
TEXTS = ("What is this?", "Is this an animal?", "What is it made of?")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def write_pictures(folder: Path) -> None:
    for name, colour in COLOURS.items():
        Image.new("RGB", (64, 48), colour).save(folder / f"{name}.jpg")


def question(number: int, image: str, text: str, answer: str = "x") -> dict[str, Any]:
    return {"question_id": number, "image": f"{image}.jpg", "text": text, "label": answer}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven questions: a picture is cut short, one is not there, a text is too long, and one no Unicode."""
    write_pictures(tmp_path)
    whole = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
    records = [question(10, "a", TEXTS[0]), question(11, "b", TEXTS[0]), question(12, "none", TEXTS[1])]
    records += [question(13, "c", TEXTS[1] * 3000), question(14, "c", TEXTS[1]), question(15, "a", TEXTS[2])]
    records += [question(16, "a", "half \ud800")]
    (tmp_path / "q.json").write_text(json.dumps(records))
    return tmp_path


def asked(folder: Path) -> tuple[str | Path, ...]:
    return "--questions", folder / "q.json", "--images", folder


FAULTS = {11: "damaged picture", 12: "missing picture", 13: "too long", 16: "bad record"}


def test_a_question_that_fails_is_named_and_counts_as_wrong(run: Run, data: Path) -> None:
    answers = data / "answers.jsonl"
    run(*asked(data), "--blind", "--answers", answers)
    records = json.loads((data / "q.json").read_text())
    records[0]["label"] = lines(answers)[0]["text"]  # the only right one
    (data / "q.json").write_text(json.dumps(records))
    code, out, err = run(*asked(data), "--blind", "--json", "--answers", answers, "--force")
    assert code == 1
    found = json.loads(out)
    assert [(f["index"], f["id"], f["kind"]) for f in found["failed"]] == [
        (number - 10, str(number), kind) for number, kind in FAULTS.items()
    ]
    assert (found["questions"], found["skipped"]) == (7, [])
    assert found["accuracy"] == 1 / 7
    for number, kind in FAULTS.items():
        assert f"q.json: record {number - 10} (id {number}): {kind}: " in err
    counts = ", ".join(f"1 x {kind}" for kind in FAULTS.values())
    assert f"4 failed, which counts as wrong: {counts}" in err
    assert [(line["question_id"], line["metadata"]["failed"] is None) for line in lines(answers)] == [
        (number, number not in FAULTS) for number in range(10, 17)
    ]
    left_out = json.loads(run(*asked(data), "--blind", "--json", "--skip-bad")[1])
    assert (left_out["questions"], left_out["failed"], len(left_out["skipped"])) == (3, [], 4)
    assert left_out["accuracy"] == 1 / 3
    assert left_out["fault_counts"] == dict.fromkeys(FAULTS.values(), 1)


def test_what_was_mended_is_asked_again_and_nothing_else(run: Run, data: Path) -> None:
    answers = data / "answers.jsonl"
    arguments = (*asked(data), "--blind", "--json", "--answers", answers)
    assert run(*arguments)[0] == 1
    kept = [{**line, "text": line["text"] and "kept"} for line in lines(answers)]
    answers.write_text("".join(json.dumps(line) + "\n" for line in kept))  # to know them again
    write_pictures(data)
    Image.new("RGB", (64, 48), (9, 9, 9)).save(data / "a.jpg")  # answered before: another picture now
    records = json.loads((data / "q.json").read_text())
    records[3]["text"] = records[6]["text"] = TEXTS[2]
    (data / "q.json").write_text(json.dumps(records[:2] + records[3:]))  # the missing one's record is gone
    code, _, err = run(*arguments, "--resume")
    assert (code, "(id 1" in err) == (0, False)
    is_kept = {line["question_id"]: line["text"] == "kept" for line in lines(answers)}
    assert is_kept == {10: False, 11: False, 13: False, 14: True, 15: False, 16: False}
    assert not work_path(answers).exists()


def test_a_record_that_is_left_out_moves_no_answer_in_a_list_without_ids(run: Run, data: Path) -> None:
    records = [
        {"image": f"{image}.jpg", "question": text, "answer": "x"}
        for image, text in (("none", TEXTS[0]), ("a", TEXTS[0]), ("c", TEXTS[0]), ("c", TEXTS[1]))
    ]
    (data / "q.json").write_text(json.dumps([*records, records[1]]))  # and one of them twice
    answers = data / "answers.jsonl"
    arguments = (*asked(data), "--blind", "--json", "--answers", answers)
    assert run(*arguments)[0] == 1
    kept = [{**line, "text": f"kept {number}"} for number, line in enumerate(lines(answers))]
    answers.write_text("".join(json.dumps(line) + "\n" for line in kept))
    (data / "q.json").write_text(json.dumps([*records[1:], records[1]]))
    code, _, err = run(*arguments, "--resume")
    assert code == 0, err
    assert [(line["question_id"], line["text"]) for line in lines(answers)] == [
        (number, f"kept {number + 1}") for number in range(4)
    ]


def test_other_inputs_than_those_it_was_begun_with_are_refused_by_name(run: Run, data: Path) -> None:
    answers = data / "answers.jsonl"
    arguments = (*asked(data), "--json", "--answers", answers)
    assert run(*arguments, "--blind")[0] == 1
    before = answers.read_bytes()
    code, _, err = run(*arguments, "--resume")
    assert (code, "answers was ['fp16 + f16 blind'] and is ['fp16 + f16', 'fp16" in err) == (2, True), err
    (data / "q.json").write_text(json.dumps([question(1, "a", TEXTS[0]), question(14, "c", TEXTS[1])]))
    code, _, err = run(*arguments, "--blind", "--resume")
    assert (code, "2 of those it has answers to are not asked now" in err) == (2, True), err
    assert answers.read_bytes() == before
    code, _, err = run(*arguments, "--blind")
    assert (code, "--resume goes on, --force begins anew" in err) == (2, True), err
    assert run(*arguments, "--blind", "--force")[0] == 0
    assert len(lines(answers)) == 2


def test_a_record_without_a_question_is_listed_with_all_others(run: Run, data: Path) -> None:
    records = [question(1, "a", TEXTS[0]), {"image": "a.jpg"}, question(2, "../a", TEXTS[0]), 5]
    (data / "q.json").write_text(json.dumps(records))
    code, _, err = run(*asked(data), "--blind", "--answers", data / "answers.jsonl")
    assert (code, [err.count(f"record {index} ") for index in range(4)]) == (2, [0, 1, 1, 1]), err
    assert "3 of 4 records hold no question" in err
    assert not list(data.glob("answers*"))
    code, out, err = run(*asked(data), "--blind", "--json", "--skip-bad")
    assert (code, json.loads(out)["questions"]) == (0, 1)
    assert "3 left out: 3 x bad record" in err


def test_a_check_finds_everything_before_and_a_start_without_it_says_so(run: Run, data: Path) -> None:
    unchecked = "--check opens all pictures"
    assert unchecked in run(*asked(data), "--blind")[2]
    code, out, _ = run(*asked(data), "--check", "--json")
    assert code == 1
    found = json.loads(out)
    assert {int(bad["id"]): bad["kind"] for bad in found["bad"]} == FAULTS
    assert (found["records"], found["cached"]) == (7, False)
    assert json.loads(run(*asked(data), "--check", "--json")[1])["cached"]
    assert unchecked not in run(*asked(data), "--blind")[2]
    write_pictures(data)
    assert [bad["id"] for bad in json.loads(run(*asked(data), "--check", "--json")[1])["bad"]] == [
        "12",
        "13",
        "16",
    ]


def test_popes_file_pairs_with_the_labels_line_by_line(run: Run, tmp_path: Path) -> None:
    pope = tmp_path / "pope"
    (pope / "val2014").mkdir(parents=True)
    (pope / "coco").mkdir()
    write_pictures(pope / "val2014")
    questions: list[dict[str, Any]] = []
    for split in ("random", "adversarial", "popular"):
        labelled = [
            question(len(questions) + n, image, "Is this an animal?") for n, image in enumerate("abcba")
        ]
        for number, record in enumerate(labelled):
            record.update(label="yes" if number % 2 else "no", text=f"{record['text'][:-1]} or {number}?")
        rows = "".join(json.dumps(record) + "\n" for record in labelled)
        (pope / "coco" / f"coco_pope_{split}.json").write_text(rows)
        questions += [{**record, "category": split} for record in labelled]
    rows = "".join(json.dumps(record) + "\n" for record in questions)
    (pope / "llava_pope_test.jsonl").write_text(rows)
    answers = tmp_path / "answers.jsonl"
    code, out, err = run("--benchmark", "pope", "--data", pope, "--json", "--answers", answers)
    assert code == 0, err
    assert [line["question_id"] for line in lines(answers)] == list(range(15))  # numbers, as in the file
    assert [line["prompt"] for line in lines(answers)] == [record["text"] for record in questions]
    # Upstream's eval_pope.py takes a category by its questions, and pairs its labels in the order of lines.
    category = {record["question_id"]: record["category"] for record in questions}
    for split, ours in json.loads(out)["splits"].items():
        said = [line["text"] for line in lines(answers) if category[line["question_id"]] == split]
        saw_no = [
            bool({"no", "No", "not"} & set(text.split(".")[0].replace(",", "").split(" "))) for text in said
        ]
        right = [no == (label == "no") for no, label in zip(saw_no, ["no", "yes"] * 3, strict=False)]
        assert ours["accuracy"] == pytest.approx(100 * sum(right) / 5)


def test_two_kills_leave_nothing_to_tell_them_by(run: Run, tmp_path: Path) -> None:
    write_pictures(tmp_path)
    records = [question(n, "abc"[n % 3], f"{TEXTS[n % 2][:-1]} {n}?") for n in range(60)]
    (tmp_path / "q.json").write_text(json.dumps(records))
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    code, report, _ = run(*asked(tmp_path), "--json", "--answers", whole)
    assert code == 0
    words = (
        *asked(tmp_path),
        "--json",
        "--threads",
        "1",
        "--max-tokens",
        "4",
        "--answers",
        killed,
        "--resume",
    )
    for least in (15, 75):  # seeing, and blind
        command = [sys.executable, "-m", "tinyllava_edge", "eval", "nano", *map(str, words)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (
                killed.exists() and killed.read_bytes().count(b"\n") > least
            ):
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, "it had ended before"
        with killed.open("ab") as file:
            file.write(b'{"question_id": 59, "te')  # as a kill in the middle of a write leaves it
    code, after, _ = run(*asked(tmp_path), "--json", "--answers", killed, "--resume")
    assert (code, json.loads(after)) == (0, json.loads(report))
    names = {path.name for path in tmp_path.glob("*.jsonl*")}
    assert names == {f"{stem}{end}.jsonl" for stem in ("whole", "killed") for end in ("", ".fp16+f16.blind")}
    for end in ("", ".fp16+f16.blind"):
        assert (tmp_path / f"killed{end}.jsonl").read_bytes() == (tmp_path / f"whole{end}.jsonl").read_bytes()
