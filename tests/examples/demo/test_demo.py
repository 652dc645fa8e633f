"""The demo: its pictures are those that the seed draws, and it counts as `eval` does. nano's bundle, CPU."""

import json
import platform
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from examples.demo.__main__ import (
    ARTISTS,
    HERE,
    Asked,
    ask_all,
    count_line,
    lines_of,
    picture_lines,
    show_pictures,
    wilson,
)
from examples.demo.draw import PICTURES, draw
from tinyllava_edge.benchmarks.evals.rules import folded

ROWS = json.loads((HERE / "questions.json").read_text(encoding="utf-8"))
FILES = sorted((HERE / "pictures").iterdir())


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    return ask_all("nano", threads=1)


def test_the_pictures_are_few_small_and_named_after_their_artists() -> None:
    assert {f"pictures/{file.name}" for file in FILES} == {row["image"] for row in ROWS}
    assert len(FILES) == PICTURES
    assert sum(file.stat().st_size for file in FILES) < 150_000
    attribution = (HERE / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for file in FILES:
        artist = file.name.split("-")[0]
        assert artist in ARTISTS
        assert f"`{artist}-`" in attribution


def test_each_picture_has_a_question_of_each_type() -> None:
    assert sorted((row["image"], row["type"]) for row in ROWS) == sorted(
        (f"pictures/{file.name}", kind) for file in FILES for kind in ("kind", "yesno")
    )


def test_a_seed_draws_the_same_from_the_same_rows_whatever_their_order(tmp_path: Path) -> None:
    rows = [
        {"id": f"{n}-{kind}", "image": f"google/{n}.webp", "type": kind} for n in range(60) for kind in "ab"
    ]
    drawn = []
    for number, source in enumerate((rows, rows[60:] + rows[:60])):
        folder = tmp_path / str(number)
        (folder / "google").mkdir(parents=True)
        for n in range(60):
            (folder / "google" / f"{n}.webp").write_bytes(b"%d" % n)
        (folder / "rows.json").write_text(json.dumps(source))
        (folder / "out").mkdir()
        draw(folder / "rows.json", folder / "out")
        found = json.loads((folder / "out" / "questions.json").read_text())
        assert len(found) == 2 * PICTURES
        for row in found:
            number_of = row["id"].split("-")[0]
            assert (folder / "out" / row["image"]).read_bytes() == number_of.encode()
        drawn.append(found)
    assert drawn[0] == drawn[1]


def test_it_asks_every_question_and_is_right_where_eval_says_so(asked: list[Asked]) -> None:
    assert [(one.right, one.type) for one in asked] == [
        (row["conversations"][1]["value"], row["type"]) for row in ROWS
    ]
    assert [one.is_right for one in asked] == [folded(one.said) == folded(one.right) for one in asked]
    assert 0 < sum(one.is_right for one in asked) < len(asked)
    right = sum(one.is_right for one in asked if one.type == "kind")
    assert count_line(asked, "kind").startswith(f"kind of thing: {right} of 40 right, 95 % interval ")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors round float16 in other ways")
def test_readme_shows_what_it_prints(asked: list[Asked]) -> None:
    readme = (HERE.parents[1] / "README.md").read_text(encoding="utf-8")
    shown = readme.split("<!-- demo: begin -->\n")[1].split("<!-- demo: end -->")[0]
    _, rows, counts = (part.splitlines() for part in shown.replace(" " * 4, "", 1).split("    ...\n"))
    printed = "\n".join(lines_of(asked)).splitlines()
    assert [line.removeprefix("    ") for line in rows] == printed[: len(rows)]
    assert [line.removeprefix("    ") for line in counts] == printed[-len(counts) :]


def test_wilsons_interval_is_the_published_one() -> None:
    """Newcombe 1998 (Statistics in Medicine 17), table I, method 3."""
    for (right, total), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(right, total) == pytest.approx(expected, abs=5e-5)


def test_a_character_is_two_pixels(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 1, 16, 2))
    picture.save(tmp_path / "p.png")
    lines = picture_lines(str(tmp_path / "p.png"))
    assert [len(line) for line in lines] == [16] * 8
    assert str(lines[0].spans[0].style) == "#ff0000 on #0000ff"
    assert str(lines[1].spans[0].style) == "#ff0000 on #ff0000"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"force_terminal": True, "color_system": "truecolor"}, True),
        ({"force_terminal": True, "color_system": "truecolor", "no_color": True}, False),
        ({"force_terminal": False}, False),
    ],
)
def test_pictures_are_shown_where_the_terminal_can(
    asked: list[Asked], options: dict[str, bool], shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = StringIO()
    show_pictures(Console(file=out, width=80, markup=False, **options), asked)  # type: ignore[arg-type]
    assert ("▀" in out.getvalue()) == shown
    assert bool(out.getvalue()) == shown


def test_a_bundle_that_is_not_there_is_one_line() -> None:
    command = [sys.executable, "-m", "examples.demo", "no-such-bundle"]
    result = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "no-such-bundle" in result.stderr
