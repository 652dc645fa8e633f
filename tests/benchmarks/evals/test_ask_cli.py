"""`ask` on nano: pictures, folders, standard input and files of rows; bad ones, a kill, and going on."""

import base64
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tinyllava_edge import cli, open_bundle
from tinyllava_edge.append_jsonl import work_path

QUESTION = "What is this?"
COLOURS = {"1": (220, 30, 30), "2": (30, 30, 220), "10": (240, 240, 60)}
HERE = ("--threads", "1", "--max-tokens", "6")
Ask = Callable[..., tuple[int, str, str]]
Rows = list[dict[str, Any]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """`ask nano ...` in this process: exit code, stdout, stderr."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
        words = ["tinyllava-edge", "ask", "nano", *arguments, *HERE]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures `1.png`, `2.png`, `10.png`, and `below/3.png`; a text and a hidden file beside them."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (64, 48), colour).save(folder / f"{name}.png")
    Image.new("RGB", (48, 48), (9, 90, 9)).save(folder / "below" / "3.PNG")
    (folder / "notes.txt").write_text("no picture")
    (folder / "._1.png").write_bytes(b"what macOS leaves")
    return folder


def lines(text: str | Path) -> Rows:
    content = text.read_text(encoding="utf-8") if isinstance(text, Path) else text
    return [json.loads(line) for line in content.split("\n")[:-1]]


def write_rows(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_is_asked_in_the_order_that_people_count_in(ask: Ask, photos: Path) -> None:
    code, out, err = ask(QUESTION, photos, "--json")
    assert code == 0, err
    found = lines(out)
    shown = [photos / f"{name}.png" for name in (1, 2, 10)]
    assert [line["picture"] for line in found] == list(map(str, shown))
    assert [line["index"] for line in found] == [0, 1, 2]
    assert {(line["question"], line["finish"], line["id"], line["error"]) for line in found} <= {
        (QUESTION, finish, None, None) for finish in ("stop_id", "max_tokens")
    }
    assert all(line["timings"]["generated_tokens"] > 0 for line in found)
    assert "3 of 3, 0 failed, " in err
    with open_bundle("nano", threads=1) as model:
        assert [line["answer"] for line in found] == [model.ask(QUESTION, one, max_tokens=6) for one in shown]
    code, out, _ = ask(QUESTION, photos, "--recursive")
    assert [line.split(": ")[0] for line in out.splitlines()] == [
        *map(str, shown),
        str(photos / "below" / "3.PNG"),
    ]


def test_pictures_come_from_stdin_and_data_urls_too(ask: Ask, photos: Path) -> None:
    content = (photos / "1.png").read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    code, out, err = ask(QUESTION, "-", photos / "1.png", url, "--json", stdin=content)
    assert code == 0, err
    found = lines(out)
    assert len({line["answer"] for line in found}) == 1
    assert [found[0]["picture"], found[1]["picture"]] == ["-", str(photos / "1.png")]
    assert found[2]["picture"].startswith("data:image/png;base64,sha256:")


def test_a_bad_picture_ends_nothing(ask: Ask, photos: Path) -> None:
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:60])
    code, out, err = ask(QUESTION, photos, "--json")
    assert code == 1
    assert [(line["answer"] is None, line["error"] is None) for line in lines(out)] == [
        (False, True),
        (True, False),
        (False, True),
    ]
    assert f"failed: {photos / '2.png'}: damaged picture" in err.replace("\n", " ")
    assert "3 of 3, 1 failed" in err
    code, out, _ = ask(QUESTION, photos, "--skip-bad")
    assert (code, len(out.splitlines())) == (0, 2)


def test_a_long_run_says_how_far_it_is_and_how_fast(
    ask: Ask, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllava_edge.benchmarks.evals.ask_cli._LINE_EVERY_S", 0.0)
    code, out, err = ask(QUESTION, photos, "-o", tmp_path / "answers.jsonl")
    assert (code, out) == (0, ""), err
    said = re.findall(r"^ask: (\d) of 3, 0 failed, \d+\.\d\d a second$", err, re.MULTILINE)
    assert said == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("PHOTOS/1.png", "the question comes first"),
        ("What?", "give a question and then pictures or folders"),
        ("What? PHOTOS/nowhere.png", "nowhere.png: cannot be read: No such file"),
        ("What? PHOTOS/below/..//empty", "no picture in this folder"),
        ("What? - -", "stands there twice"),
        ("What? -", "found nothing"),
        ("What? https://example.com/a.png", "nothing is fetched unless you say so: --allow-url"),
        ("What? PHOTOS --images PHOTOS", "--images goes with --input"),
        ("What? PHOTOS --resume", "--resume goes on with the file of --output"),
        ("What? PHOTOS -o OUT --resume --force", "give one"),
        ("What? PHOTOS --input ROWS -o OUT", "--input has the pictures"),
        ("--input EMPTY -o OUT", "the file is empty"),
        ("--input BAD -o OUT", "no record can be asked: record 0: expected"),
        ("--input AWAY -o OUT", "none of its 1 pictures is there"),
        ("What? PHOTOS --temperature -1 -o OUT", "temperature"),
        ("What? PHOTOS -o MINE", "exists already"),
        ("What? PHOTOS -o MINE --force", "holds other lines than answers of ask"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    ask: Ask, photos: Path, tmp_path: Path, words: str, message: str
) -> None:
    (photos / "empty").mkdir()
    files: dict[str, Rows] = {"ROWS": [{"image": "1.png", "question": "q"}], "BAD": [{"image": "1.png"}]}
    files |= {"AWAY": [{"image": "gone.png", "question": "q"}], "EMPTY": [], "MINE": [{"mine": 1}]}
    for name, rows in files.items():
        write_rows(tmp_path / name, rows)
    given = [
        word.replace("PHOTOS", str(photos))
        if "PHOTOS" in word
        else tmp_path / word
        if word.isupper()
        else word
        for word in words.split()
    ]
    before = sorted(tmp_path.iterdir()), (tmp_path / "MINE").read_bytes()
    code, out, err = ask(*given)
    assert (code, out) == (2, ""), err
    assert message in err.splitlines()[-1]
    assert before == (sorted(tmp_path.iterdir()), (tmp_path / "MINE").read_bytes())


def test_rows_of_a_file_are_asked_in_any_form(ask: Ask, photos: Path, tmp_path: Path) -> None:
    url = f"data:image/png;base64,{base64.b64encode((photos / '1.png').read_bytes()).decode()}"
    talk = [{"from": "human", "value": "<image>\nIs it red?"}, {"from": "gpt", "value": "Yes"}]
    rows = write_rows(
        tmp_path / "rows.jsonl",
        [
            {"question_id": 7, "image": "1.png", "text": "Is it red?"},  # upstream's question files
            {"id": "b", "picture": str(photos / "2.png"), "question": QUESTION},
            {"image": url, "question": QUESTION},
            {"image": "10.png"},  # has the question of the command line
            {"question": "Is the sky blue?"},  # is about no picture
            {"id": 3, "image": "1.png", "conversations": [*talk, {"from": "human", "value": "Is it big?"}]},
            {"id": "bad", "image": ["1.png", "2.png"], "question": QUESTION},
            {"id": "gone", "image": "gone.png", "question": QUESTION},
        ],
    )
    out = tmp_path / "answers.jsonl"
    code, said, err = ask("And this?", "--input", rows, "--images", photos, "-o", out, "--json")
    assert code == 1, err
    assert json.loads(said) == {"output": str(out), "rows": 9, "failed": 2, "known": 0, "schema": 1}
    found = lines(out)
    assert [line["index"] for line in found] == list(range(9))
    assert [line["id"] for line in found] == [7, "b", None, None, None, 3, 3, "bad", "gone"]
    questions = [
        "Is it red?",
        QUESTION,
        QUESTION,
        "And this?",
        "Is the sky blue?",
        "Is it red?",
        "Is it big?",
    ]
    assert [line["question"] for line in found] == [*questions, None, QUESTION]
    pictures = [line["picture"] for line in found]
    assert pictures[:2] == ["1.png", str(photos / "2.png")]
    assert pictures[3:] == ["10.png", None, "1.png", "1.png", None, "gone.png"]
    assert "record 6: image lists 2 pictures" in found[7]["error"]
    assert "gone.png: cannot be read: no such file" in found[8]["error"]
    with open_bundle("nano", threads=1) as model:
        alone = model.ask("Is it red?", photos / "1.png", max_tokens=6)
    assert found[0]["answer"] == found[5]["answer"] == alone
    assert work_path(out).exists(), "what failed may be asked again"


def test_what_was_mended_is_asked_again_and_other_settings_are_refused(
    ask: Ask, photos: Path, tmp_path: Path
) -> None:
    whole = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(whole[:60])
    out = tmp_path / "answers.jsonl"
    arguments = (QUESTION, photos, "-o", out)
    assert ask(*arguments)[0] == 1
    before = out.read_bytes()
    for more, message in (
        ((), "--resume goes on, --force begins anew"),
        (("--resume", "--temperature", "0.5"), "temperature was 0.0 and is 0.5"),
        (("--resume", "--language", "q8_0"), "language was 'llamacpp f16"),
    ):
        code, _, err = ask(*arguments, *more)
        assert (code, message in err) == (2, True), err
    code, _, err = ask("Is it red?", photos, "-o", out, "--resume")
    assert (code, "2 of those it has answers to are not asked now" in err) == (2, True), err
    assert out.read_bytes() == before
    (photos / "2.png").write_bytes(whole)
    Image.new("RGB", (40, 40)).save(photos / "0.png")  # a new one comes first
    code, _, err = ask(*arguments, "--resume")
    assert code == 0, err
    assert "4 of 4, 0 failed" in err
    assert "2 known from before" in err
    found = lines(out)
    assert [Path(line["picture"]).stem for line in found] == ["0", "1", "2", "10"]
    assert [line["index"] for line in found] == [0, 1, 2, 3]
    assert [found[1]["timings"], found[3]["timings"]] == [
        lines(before.decode())[place]["timings"] for place in (0, 2)
    ]
    assert not work_path(out).exists()
    code, _, err = ask(*arguments, "--resume")
    assert (code, "nothing to resume" in err) == (2, True), err
    assert ask(*arguments, "--force")[0] == 0


def test_a_kill_loses_no_row_and_doubles_none(ask: Ask, photos: Path, tmp_path: Path) -> None:
    rows = [{"question_id": n, "image": f"{(1, 2, 10)[n % 3]}.png", "text": f"Is it {n}?"} for n in range(90)]
    rows[5]["image"] = "gone.png"
    file, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "answers.jsonl"
    arguments = ("--input", file, "--images", photos, "-o", out)
    command = [sys.executable, "-m", "tinyllava_edge", "ask", "nano", *map(str, arguments), *HERE]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not out.exists() or out.read_bytes().count(b"\n") < 20:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    known = out.read_bytes().count(b"\n")
    assert 20 <= known < 90
    kept = lines(out)
    with out.open("ab") as half:
        half.write(b'{"index": 77, "id": 77, "pict')  # as a kill in the middle of a line leaves it
    code, _, err = ask(*arguments, "--resume")
    assert code == 1, err
    assert f"{known - 1} known from before" in err
    found = lines(out)
    assert [line["id"] for line in found] == list(range(90))
    assert [line["id"] for line in found if line["error"]] == [5]
    assert [line for line in found[:known] if line["id"] != 5] == [line for line in kept if line["id"] != 5]


def test_log_probabilities_stand_in_the_lines(ask: Ask, photos: Path) -> None:
    code, out, _ = ask(QUESTION, photos / "1.png", "--json", "--logprobs", "1")
    (line,) = lines(out)
    assert code == 0
    assert "".join(entry["text"] for entry in line["logprobs"]).strip() == line["answer"]
    assert all(entry["logprob"] <= 0 for entry in line["logprobs"])
