"""README's lines of Python, and what they promise: the embedded model asked in a loop. CPU."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyllava_edge import Model, open_bundle

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "tests" / "fixtures" / "images"
PICTURES = [
    ROOT / "docs" / "pictures" / "cat.jpg",
    ROOT / "docs" / "pictures" / "emoji.webp",
    *(IMAGES / name for name in ("cat_231x153.png", "portrait_139x251.png", "strip_403x61.png")),
]
QUESTION = "What is this?"


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with open_bundle("nano", threads=1) as opened:
        yield opened


def test_the_lines_of_the_readme_print_an_answer(
    model: Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(lines.splitlines()) == 3
    exec(lines, {})
    question, picture = re.findall(r'"([^"]+)"', lines.splitlines()[2])
    answer = "".join(model.chat(question, [ROOT / picture]))
    assert answer
    assert capsys.readouterr().out == f"{answer}\n"


def test_each_picture_of_a_loop_has_the_answer_it_has_alone(model: Model) -> None:
    alone = []
    for picture in PICTURES:
        with open_bundle("nano", threads=1) as fresh:
            alone.append(fresh.ask(QUESTION, [picture]))
    assert [model.ask(QUESTION, [picture]) for picture in PICTURES] == alone
    assert len(set(alone)) > 1


def test_thirty_questions_in_a_row_never_overflow(model: Model) -> None:
    answers = [model.ask(QUESTION, PICTURES[number % 5]) for number in range(30)]
    assert answers == answers[:5] * 6
