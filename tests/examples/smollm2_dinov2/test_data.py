"""The example's data, out of a small tree of its packages' layout, and (network) out of the packages."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from examples.smollm2_dinov2 import data
from examples.smollm2_dinov2.data import ARTISTS, QUESTIONS, build, read_concepts
from examples.smollm2_dinov2.kinds import KINDS, main_colour
from tinyllava_edge.benchmarks.evals.questions import read_questions
from tinyllava_edge.cli import app
from tinyllava_edge.errors import DataError, OutputExistsError

SUBGROUPS = ["animal-mammal", "food-fruit", "tool", "country-flag"]
COLOURS = {"animal-mammal": "brown", "food-fruit": "red", "tool": "grey"}
PAINT = {"brown": (120, 70, 30, 255), "red": (220, 20, 30, 255), "grey": (128, 128, 128, 255)}
EACH = 10  # concepts of a subgroup


def write_packages(folder: Path) -> Path:
    """Ten things of each subgroup by three artists, whose files name the coloured form in their own ways."""
    entries: list[dict[str, Any]] = []
    for number, group in enumerate(SUBGROUPS):
        for index in range(EACH):
            code = f"1F{number}{index:02X}"
            entries.append(
                {"label": f"{group} {index}", "hexcode": code, "subgroup": number, "order": len(entries)}
            )
    entries.append({"label": "animal-mammal 0 face", "hexcode": "1F0FF", "subgroup": 0, "order": 99})
    entries.append(
        {"label": "woman with a tool", "hexcode": "1F2FF", "subgroup": 2, "order": 98, "gender": 0}
    )
    entries.append({"label": "regional indicator A", "hexcode": "1F1E6"})  # has no group
    for path, value in ((data.LABELS, entries), (data.GROUPS, {"subgroups": dict(enumerate(SUBGROUPS))})):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(json.dumps(value), encoding="utf-8")
    for (artist, place), suffix in zip(ARTISTS.items(), (".png", ".png", ".webp"), strict=True):
        (folder / place).mkdir(parents=True)
        for entry in entries:
            drawing = Image.new("RGBA", (64, 64))
            colour = COLOURS.get(SUBGROUPS[entry.get("subgroup", 3)], "red")
            drawing.paste(PAINT[colour], (8, 8, 56, 56))
            stem = entry["hexcode"].lower() + ("-fe0f" if artist == "fluent" else "")
            drawing.save(folder / place / f"{stem}{suffix}", lossless=True)
    return folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packages(tmp_path_factory.mktemp("node_modules"))


def records(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def code(record: dict[str, Any]) -> str:
    """The thing that a record's picture shows, whoever drew it."""
    return str(record["image"]).split("/")[1].split("-")[1].removesuffix(".jpg")


def test_no_artists_picture_of_a_tested_thing_is_trained(packages: Path, tmp_path: Path) -> None:
    counts = build(packages, tmp_path / "out", views=2)
    found = {
        part: records(tmp_path / "out" / f"{part}.json") for part in ("captions", "train", "val", "test")
    }
    things = {part: {code(record) for record in its} for part, its in found.items()}
    assert {part: len(its) for part, its in things.items()} == {
        "captions": 21,
        "train": 21,
        "val": 3,
        "test": 6,
    }
    assert things["captions"] == things["train"]
    assert (
        not things["train"] & things["val"]
        | things["train"] & things["test"]
        | things["val"] & things["test"]
    )
    assert counts == {"concepts": 30, "captions": 126, "train": 126, "val": 27, "test": 54}
    artists = {record["image"].split("/")[1].split("-")[0] for record in found["test"]}
    assert artists == set(ARTISTS)


def test_what_is_answered_is_so(packages: Path, tmp_path: Path) -> None:
    """Every answer of every file, from the picture's code alone: its second character tells the subgroup."""
    build(packages, tmp_path / "out", views=2)
    truth = {str(number): (kind, COLOURS[group]) for number, group in enumerate(SUBGROUPS[:3])
             for kind, groups in KINDS.items() if group in groups}  # fmt: skip
    asked = 0
    for part in ("train", "val", "test"):
        for record in records(tmp_path / "out" / f"{part}.json"):
            kind, colour = truth[code(record)[2]]
            said = [turn["value"] for turn in record["conversations"]]
            for question, answer in zip(said[::2], said[1::2], strict=True):
                question = question.removeprefix("<image>\n")
                about = re.fullmatch(
                    "|".join(QUESTIONS["yesno"]).replace("?", r"\?").replace("{}", "(.+)"), question
                )
                if about:
                    named = next(filter(None, about.groups()))
                    assert named in KINDS
                    assert answer == ("yes" if named == kind else "no")
                elif question in QUESTIONS["kind"]:
                    assert answer == kind
                elif question in QUESTIONS["colour"]:
                    assert answer == colour
                else:
                    assert question in QUESTIONS["name"]
                    assert answer.startswith(next(group for group in KINDS[kind] if group in SUBGROUPS))
                asked += 1
    assert asked == 2 * 63 * 2 + 27 + 54
    caption = records(tmp_path / "out" / "captions.json")[0]["conversations"][1]["value"]
    assert re.fullmatch(r"mammal: animal-mammal \d, mostly brown", caption)


def test_train_and_eval_take_the_files(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(packages, out, views=1)
    for part in ("captions", "train"):
        arguments = ["train", "--check", "--from", "nano", "--data", str(out / f"{part}.json")]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    questions = read_questions(out / "test.json", out)
    assert {question.type for question in questions} == {"kind", "yesno", "colour"}
    assert len(questions) == 54
    with Image.open(out / "test" / Path(str(questions[0].image)).name) as picture:
        assert picture.size == (data.SIZE, data.SIZE)


def test_a_seed_says_all(packages: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build(packages, tmp_path / name, views=1, seed=seed)
    files = {}
    for name in "abc":
        out = tmp_path / name
        files[name] = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*")}
    assert files["a"] == files["b"]
    assert {path.name for path in files["a"]} != {path.name for path in files["c"]}
    with pytest.raises(OutputExistsError):
        build(packages, tmp_path / "a", views=1)


def test_a_thing_is_there_once_and_only_as_one_of_our_kinds(packages: Path) -> None:
    concepts = read_concepts(packages)
    assert [concept.name for concept in concepts] == [
        f"{group} {i}" for group in SUBGROUPS[:3] for i in range(EACH)
    ]
    assert all(set(concept.pictures) == set(ARTISTS) for concept in concepts)


def test_packages_that_are_missing_or_others_are_named(tmp_path: Path) -> None:
    packages = write_packages(tmp_path / "node_modules")
    (packages / ARTISTS["twemoji"]).rename(packages / "elsewhere")
    with pytest.raises(DataError, match=r"emoji-datasource-twitter.*no such folder\. Give node_modules"):
        build(packages, tmp_path / "out", views=1)
    (packages / data.LABELS).write_text('[{"label": "x", "subgroup": 99, "hexcode": "1"}]', encoding="utf-8")
    with pytest.raises(DataError, match=r"data.json, groups.json: not as emojibase-data"):
        build(packages, tmp_path / "out", views=1)
    with pytest.raises(DataError, match=r"data.json: cannot be read"):
        build(tmp_path, tmp_path / "out", views=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("colour", "name"), [
    ((220, 20, 30), "red"), ((250, 130, 20), "orange"), ((250, 210, 60), "yellow"), ((90, 180, 60), "green"),
    ((60, 130, 220), "blue"), ((130, 80, 200), "purple"), ((250, 140, 190), "pink"), ((110, 70, 40), "brown"),
    ((20, 20, 25), "black"), ((245, 245, 240), "white"), ((130, 130, 135), "grey"),
])  # fmt: skip
def test_a_drawing_of_one_colour_has_that_one(colour: tuple[int, int, int], name: str) -> None:
    drawing = Image.new("RGBA", (20, 20))
    drawing.paste((*colour, 255), (5, 5, 15, 15))
    assert main_colour(drawing) == name


def test_a_drawing_of_many_colours_has_none() -> None:
    drawing = Image.new("RGBA", (30, 10))
    for index, colour in enumerate(((220, 20, 30), (60, 130, 220), (90, 180, 60))):
        drawing.paste((*colour, 255), (10 * index, 0, 10 * index + 10, 10))
    assert main_colour(drawing) is None
    assert main_colour(Image.new("RGBA", (4, 4))) is None


@pytest.mark.network
@pytest.mark.slow
def test_the_packages_have_what_the_figures_are_of(tmp_path: Path) -> None:
    named = re.findall(r"[\w/@-]+@\d+\.\d+\.\d+", str(data.__doc__))
    assert len(named) == 4
    install = [
        "npm",
        "install",
        "--silent",
        "--prefix",
        str(tmp_path),
        "--ignore-scripts",
        "--no-audit",
        *named,
    ]
    subprocess.run(install, check=True)
    counts = build(tmp_path / "node_modules", tmp_path / "out", views=1)
    assert counts == {"concepts": 569, "captions": 1227, "train": 1227, "val": 378, "test": 929}
