"""The scripts of examples/ do on nano what their first line says. CPU."""

import io
import re
import runpy
import shutil
from pathlib import Path

import pytest

from examples.json_answer import SCHEMA
from tinyllava_edge import open_bundle

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples" / "demo" / "pictures"
FIRST, SECOND = sorted(PICTURES.iterdir())[:2]
QUESTION = "What kind of thing is this?"


def run_script(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, typed: str = "") -> None:
    monkeypatch.setattr("sys.argv", [name, *arguments])
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_a_folder_has_an_answer_for_each_picture_and_a_reason_for_what_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, picture in enumerate((FIRST, SECOND)):
        shutil.copy(picture, tmp_path / f"{number}.webp")
    (tmp_path / "notes.txt").write_text("no picture")
    run_script("ask_folder.py", ["nano", str(tmp_path), QUESTION], monkeypatch)
    with open_bundle("nano") as model:
        alone = [f"{n}.webp: {model.ask(QUESTION, p)}" for n, p in enumerate((FIRST, SECOND))]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == alone
    assert lines[2].startswith("notes.txt: ")
    assert "not a picture" in lines[2] or "no picture" in lines[2]


def test_a_chat_answers_each_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script("chat.py", ["nano", str(FIRST)], monkeypatch, f"{QUESTION}\nIs it a fruit?\n")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert re.fullmatch(r".+  \(\d+ ms to the first token\)", line)


def test_an_answer_is_one_of_the_schemas(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script("json_answer.py", ["nano", str(FIRST)], monkeypatch)
    assert capsys.readouterr().out.strip() in SCHEMA["properties"]["kind"]["enum"]  # type: ignore[index]


def test_every_script_is_listed_and_run() -> None:
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    own = Path(__file__).read_text(encoding="utf-8")
    for script in (ROOT / "examples").glob("*.py"):
        if script.name != "__init__.py":
            assert f"`examples/{script.name}`" in page
            assert f'run_script("{script.name}"' in own
