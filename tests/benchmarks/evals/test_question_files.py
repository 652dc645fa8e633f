"""Every form of question files that is read, and what is said of one that is broken."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tinyllava_edge.benchmarks.evals.question import Question
from tinyllava_edge.benchmarks.evals.questions import read_records
from tinyllava_edge.benchmarks.evals.tables import TablePicture
from tinyllava_edge.errors import DataError


def read(folder: Path, content: str | bytes, name: str = "q.json") -> list[Question | str]:
    """Questions of a file, and the faults of those records that hold none."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found: list[Question | str] = []
    for record in read_records(path, folder):
        found += [str(record)] if isinstance(record, DataError) else record
    return found


def questions(folder: Path, content: str | bytes, name: str = "q.json") -> list[Question]:
    found = read(folder, content, name)
    assert all(isinstance(each, Question) for each in found), found
    return [each for each in found if isinstance(each, Question)]


PLAIN = {"image": "a.png", "question": "What?", "answer": "face"}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([PLAIN]),
        "\ufeff" + json.dumps([PLAIN]),
        json.dumps(PLAIN),
        json.dumps(PLAIN) + "\r\n\r\n",
        "\ufeff" + json.dumps(PLAIN, indent=1),
        json.dumps([{**PLAIN, "image": None, "images": ["a.png"], "text": None}]),
        json.dumps([{**PLAIN, "answer": None, "answers": ["face"], "conversations": None}]),
    ],
)
def test_a_list_a_line_one_record_and_a_byte_order_mark(tmp_path: Path, content: str) -> None:
    (found,) = questions(tmp_path, content)
    assert (found.text, found.answers, found.image) == ("What?", ("face",), tmp_path / "a.png")
    assert found.rule == "exact"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (2, ("2",)),
        (2.0, ("2",)),
        (0.5, ("0.5",)),
        (["yellow", "gold"], ("yellow", "gold")),
        ([3, "three"], ("3", "three")),
        ([], ()),
        (None, ()),
        ([{"answer": "net", "answer_id": 1}], ("net",)),
    ],
)
def test_an_answer_is_a_text_a_number_a_list_or_missing(tmp_path: Path, answer: Any, expected: Any) -> None:
    (found,) = questions(tmp_path, json.dumps([{**PLAIN, "answer": answer}]))
    assert found.answers == expected


@pytest.mark.parametrize("answer", [True, {"text": "x"}, [["x"]], float("nan"), float("inf"), [True]])
def test_any_other_answer_is_named_by_its_key(tmp_path: Path, answer: Any) -> None:
    (fault,) = read(tmp_path, json.dumps([{**PLAIN, "answer": answer}]))
    assert str(fault).startswith(("answer is", "answer has"))


def test_questions_without_answers_are_read(tmp_path: Path) -> None:
    line = {"question_id": 7, "image": "a.png", "text": "Describe it.", "category": "conv"}
    (found,) = questions(tmp_path, json.dumps(line))
    assert (found.id, found.answers, found.type) == (7, (), "conv")
    talk = {"id": 1, "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}
    (found,) = questions(tmp_path, json.dumps([talk]))
    assert (found.text, found.answers) == ("What?", ())


def test_roles_of_other_tools_and_a_list_of_one_picture_are_read(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "cat"}]
    for key in ("conversations", "messages"):
        (found,) = questions(tmp_path, json.dumps([{"image": ["a.png"], key: talk}]))
    assert (found.text, found.answers, found.image) == ("What?", ("cat",), tmp_path / "a.png")


def test_all_faults_of_a_file_are_found_each_with_its_keys(tmp_path: Path) -> None:
    records = [PLAIN, {"image": "../a.png"}, {**PLAIN, "image": ["a", "b"]}, 5, {"conversations": "?"}]
    found = read(tmp_path, json.dumps(records))
    assert isinstance(found[0], Question)
    both, several, number, talk = map(str, found[1:])
    assert "'question' as text, found image" in both
    assert "image is '../a.png'" in both
    assert "image lists 2 pictures" in several
    assert "expected an object, found int" in number
    assert "conversations are not pairs" in talk


def test_a_broken_line_is_the_fault_of_its_record_alone(tmp_path: Path) -> None:
    line = json.dumps(PLAIN)
    found = read(tmp_path, f'{line}\n{line[:20]}\n\ufeff{line}\n{line[:-1]}, "answer": 2}}\n')
    assert [isinstance(each, Question) for each in found] == [True, False, True, False]
    assert "line 2 is not JSON" in str(found[1])
    assert "'answer' is there twice" in str(found[3])
    with pytest.raises(DataError, match="neither JSON nor one record a line"):
        read(tmp_path, json.dumps([PLAIN, PLAIN], indent=1)[:-9])  # half a download


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty"),
        ("\ufeff \n", "the file is empty"),
        ("[]", "the list is empty"),
        ("what?", "neither"),
        (
            "index\timage\tA\tanswer\n0\tZm9v\tx\tA",
            "a table without the column 'question'; it has index, image",
        ),
        ("image\tquestion\tanswer\nZm9v\tWhat?\tA", "a table without the column 'index'"),
    ],
)
def test_a_file_without_records_is_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "key",
    [
        {"image_path": "a.png"},
        {"image_id": 42},
        {"img": "a"},
        {"video": "a.mp4"},
        {"meta": {"photo": "a.JPG"}},
    ],
)
def test_a_picture_under_a_key_that_is_not_read_is_not_left_out(tmp_path: Path, key: dict[str, Any]) -> None:
    (fault,) = read(tmp_path, json.dumps([{"question": "What?", "answer": "face", **key}]))
    assert f"has the key {next(iter(key))!r}" in str(fault)
    assert questions(tmp_path, json.dumps([{"question": "What?", "image_id": None, "source": "web"}]))


def test_mmes_text_of_its_tool_and_beside_a_picture(tmp_path: Path) -> None:
    asked = "Is this a face? Please answer yes or no."
    (found,) = questions(tmp_path, f"\ufeff0001.jpg\t{asked}\tYes\r\n\r\n", "count.txt")
    assert (found.text, found.answers, found.type, found.rule) == (asked, ("yes",), "count", "mme")
    folder = tmp_path / "posters" / "questions_answers_YN"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "7.png")
    found, _ = questions(folder, f"{asked}\tYes\n{asked}\tNo\n", "7.txt")
    assert (found.image, found.type) == (folder / "7.png", "posters")
    fault, named = read(tmp_path, f"0001.jpg\t{asked}\tMaybe\n1\t2\t3\t4\t5\n", "count.txt")
    assert "answer is 'Maybe', expected yes or no (rule mme)" in str(fault)
    assert "line 2 has 5 columns" in str(named)


def encoded(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_mmbenchs_table_is_asked_as_llava_asks(tmp_path: Path) -> None:
    rows = [
        ["index", "hint", "question", "A", "B", "C", "D", "answer", "category", "image"],
        ["1", "nan", "What?", "a cat", "a dog", "nan", "", "B", "kind", encoded("red")],
        ["1000001", "Look.", '"What\n, now?"', "a dog", "a cat", "", "", "A", "kind", "1"],
    ]
    table = "\n".join("\t".join(row) for row in rows)
    first, second = questions(tmp_path, table, "q.tsv")
    by_letter = "Answer with the option's letter from the given choices directly."
    assert first.text == f"What?\nA. a cat\nB. a dog\n{by_letter}"
    assert second.text == f"Look.\nWhat\n, now?\nA. a dog\nB. a cat\n{by_letter}"
    assert (first.id, first.answers, first.type, first.rule) == (1, ("B",), "kind", "mmbench")
    assert isinstance(first.image, TablePicture)
    assert first.image == second.image
    assert Image.open(io.BytesIO(first.image.content)).size == (4, 4)
    assert list(first.options) == ["A", "B"]


def test_faults_of_a_table_are_those_of_its_rows(tmp_path: Path) -> None:
    head = "index\timage\tquestion\tA\tB\tanswer\n"
    rows = [
        "0\tZm9v\tWhat?\tx\ty\tA\tB",
        "5\t!!\tWhat?\tx\ty\tA",
        "1\t9\tWhat?\tx\ty\tA",
        "2\tZm9v\tWhat?",
        "x\tZm9v\tWhat?\tx\ty\tA",
        "6\tZm9v\tWhat?\tx\ty\tA",
        "6\tZm9v\tWhat?\tx\ty\tB",
    ]
    found = read(tmp_path, head + "\n".join([*rows, "3\tZm9v\tWhat?\tx\ty\tno"]), "q.tsv")
    for fault, said in zip(
        found,
        [
            "7 columns, expected 6",
            "no base64",
            "image is 9",
            "3 columns, expected 6",
            "index is 'x'",
            *["index '6' is that of several rows"] * 2,
            "a choice's letter",
        ],
        strict=True,
    ):
        assert said in str(fault)


def test_a_tables_pictures_may_have_line_ends_or_be_files_and_a_letter_any_case(tmp_path: Path) -> None:
    cell = encoded("red")
    head = "index\timage\tquestion\tA\tB\tanswer\r\n"
    (found,) = questions(tmp_path, f'{head}7\t"{cell[:20]}\n{cell[20:]}\n"\tWhat?\tx\ty\t b\r\n', "q.tsv")
    assert isinstance(found.image, TablePicture)
    assert (found.image.content, found.answers) == (base64.b64decode(cell), ("B",))
    (found,) = questions(tmp_path, "index\timage_path\tquestion\n7\ta.png\tWhat?\n", "q.tsv")
    assert found.image == tmp_path / "a.png"


def test_a_table_whose_first_column_has_no_name_is_not_shifted(tmp_path: Path) -> None:
    (found,) = questions(
        tmp_path, f"\tindex\timage\tquestion\tanswer\n0\t7\t{encoded('red')}\tWhat?\tred", "q.tsv"
    )
    assert (found.id, found.text, found.answers) == (7, "What?", ("red",))


def test_the_public_sets_own_objects_are_read(tmp_path: Path) -> None:
    vqa = {"data_subtype": "val2014", "questions": [{"image_id": 42, "question": "Q?", "question_id": 420}]}
    (found,) = questions(tmp_path, json.dumps(vqa))
    assert (found.id, found.picture, found.rule) == (420, "COCO_val2014_000000000042.jpg", "vqav2")
    (found,) = questions(tmp_path, json.dumps({**vqa, "data_subtype": "test-dev2015"}))
    assert found.picture == "COCO_test2015_000000000042.jpg"
    textvqa = {"data": [{"image_id": "ab", "question_id": 1, "question": "Q?", "answers": ["a"] * 10}]}
    (found,) = questions(tmp_path, json.dumps(textvqa))
    assert (found.picture, found.answers, found.rule) == ("ab.jpg", ("a",) * 10, "textvqa")
    (found,) = questions(tmp_path, json.dumps({"05": {"imageId": "n1", "question": "Q?", "answer": "yes"}}))
    assert (found.id, found.picture, found.answers, found.rule) == ("05", "n1.jpg", ("yes",), "gqa")
    with pytest.raises(DataError, match="ScienceQA's problems are references"):
        read(tmp_path, json.dumps({"4": {"choices": ["x", "y"], "answer": 1, "question": "Q?"}}))
    (fault,) = read(tmp_path, json.dumps({"data": [{"image_id": "ab", "question": "Q?", "answers": ["a"]}]}))
    assert "answers: 1, expected those of 10 people (rule textvqa)" in str(fault)
    (fault,) = read(tmp_path, json.dumps({"questions": [{"image_id": "x", "question": "Q?"}]}))
    assert "expected image_id, question and question_id, found image_id, question" in str(fault)


def test_the_rule_of_a_plain_file_is_told_by_all_its_answers(tmp_path: Path) -> None:
    def rule(*records: dict[str, Any]) -> str:
        return questions(tmp_path, json.dumps(records))[0].rule

    pope = {"image": "a.png", "text": "Is there a cat?", "label": "no"}
    assert rule(pope) == "pope"
    assert rule(pope, {**pope, "label": "cat"}) == "exact"
    talk = [
        {"from": "human", "value": "Which?\nOptions: (A) x (B) y"},
        {"from": "gpt", "value": "The answer is B."},
    ]
    assert rule({"id": "4", "conversations": talk}) == "scienceqa"
    (found,) = questions(tmp_path, json.dumps([{"id": "4", "image": "4/image.png", "conversations": talk}]))
    assert found.answers == ("B",)
    assert found.prompt.startswith("<image>\nWhich?")  # by which upstream's scorer knows IMG
    assert found.prompt.endswith("letter from the given choices directly.")
