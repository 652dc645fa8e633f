"""`eval` on files of other forms than its own: on nano, whose answers are asked for first."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.benchmarks.evals.conftest import Run

ASKED = [{"question_id": n, "image": "a.jpg", "text": text} for n, text in enumerate(("What?", "Is it red?"))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48), (220, 30, 30)).save(tmp_path / "a.jpg")
    (tmp_path / "q.jsonl").write_text("\ufeff" + "".join(json.dumps(line) + "\n" for line in ASKED))
    return tmp_path


def answered(run: Run, folder: Path, *more: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result, and the lines of the answers."""
    file = folder / "answers.jsonl"
    arguments = (
        "--questions",
        folder / "q.jsonl",
        "--images",
        folder,
        "--answers",
        file,
        "--force",
        "--json",
    )
    code, out, err = run(*arguments, *more)
    assert code == 0, err
    return json.loads(out), [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_questions_without_answers_are_asked_once_and_their_answers_written(run: Run, folder: Path) -> None:
    code, _, err = run("--questions", folder / "q.jsonl", "--images", folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds no answers to score by. Give --answers FILE" in err
    result, lines = answered(run, folder)
    assert (result["rule"], result["accuracy"], result["unscored"], result["failed"]) == (None, None, 2, [])
    assert [(line["question_id"], line["prompt"]) for line in lines] == [(0, "What?"), (1, "Is it red?")]
    assert all(line["text"] for line in lines)
    assert {(line["metadata"]["right"], line["metadata"]["expected"]) for line in lines} == {(None, None)}
    assert len(list(folder.glob("answers*"))) == 1  # none of a grey picture


def test_references_beside_them_score_and_the_rule_is_named(run: Run, folder: Path) -> None:
    said = [line["text"] for line in answered(run, folder)[1]]
    people = [[said[0]] * 2 + ["?x"] * 8, ["?x"] * 10]
    annotations = [
        {"question_id": n, "answer_type": "other", "answers": [{"answer": text} for text in texts]}
        for n, texts in enumerate(people)
    ]
    (folder / "people.json").write_text(json.dumps({"annotations": annotations}))
    result, lines = answered(run, folder, "--references", folder / "people.json")
    # Two of ten said it: each of them sees one other (1/3), eight see two (2/3).
    credit = (2 * 1 / 3 + 8 * 2 / 3) / 10
    assert result["rule"] == "vqav2"
    assert result["accuracy"] == pytest.approx(credit / 2)
    assert result["figures"]["score"] == pytest.approx(50 * credit)
    assert list(result["types"]) == ["other"]
    assert [line["metadata"]["right"] for line in lines] == [pytest.approx(credit), False]
    result, _ = answered(run, folder, "--references", folder / "people.json", "--rule", "exact")
    assert (result["rule"], result["accuracy"]) == ("exact", 0.5)  # one of the expected ones
    code, _, err = run("--questions", folder / "q.jsonl", "--images", folder, "--rule", "exakt")
    assert (code, "Known: exact, scienceqa, mmbench" in err) == (2, True)


def test_a_table_has_its_pictures_inside_and_a_damaged_one_is_named(run: Run, folder: Path) -> None:
    picture = base64.b64encode((folder / "a.jpg").read_bytes()).decode()
    rows = [f"1\t{picture}\tWhat?\tmammal\tred\tA", "2\tZm9v\tWhat?\tx\ty\tB", "3\t1\tWhat?\tmammal\tred\tB"]
    (folder / "q.tsv").write_text("index\timage\tquestion\tA\tB\tanswer\n" + "\n".join(rows))
    arguments = ("--questions", folder / "q.tsv", "--images", folder, "--json")
    code, out, err = run(*arguments, "--blind")
    result = json.loads(out)
    assert (code, result["rule"], result["figures"]["kind"], result["images"]) == (1, "mmbench", "vanilla", 2)
    (failed,) = result["failed"]
    assert (failed["index"], failed["id"], failed["kind"]) == (1, "2", "damaged picture")
    assert "q.tsv: row 2: image: " in failed["reason"]
    assert "q.tsv: record 1 (id 2): damaged picture: " in err
    code, out, _ = run(*arguments, "--check")
    assert (code, [bad["reason"] for bad in json.loads(out)["bad"]]) == (1, [failed["reason"]])
