"""Emoji of three artists out of npm packages -> LLaVA conversations about what they show.

    npm install --prefix DIR --ignore-scripts emojibase-data@17.0.0 emoji-datasource-google@16.0.0 \
        emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
    python -m examples.smollm2_dinov2.data DIR/node_modules -o DATA

Names and kinds are Unicode's (emojibase), the pictures Noto's, Twemoji's and Fluent's. Concepts are drawn
into train, val and test, so that no artist's picture of a tested thing was trained. Pictures to train on are
drawn anew in each view: size, place, mirror image and background; those to test on stand on white.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

import tools
from tinyllava_edge.atomic_files import output_directory, write_json
from tinyllava_edge.console import print_json, progress
from tinyllava_edge.errors import DataError
from tinyllava_edge.user_files import read_user_text

from .kinds import KINDS, NO_VEHICLES, main_colour

SIZE = 224
LABELS = Path("emojibase-data", "en", "data.json")
GROUPS = Path("emojibase-data", "meta", "groups.json")
ARTISTS = {
    "noto": Path("emoji-datasource-google", "img", "google", "64"),
    "twemoji": Path("emoji-datasource-twitter", "img", "twitter", "64"),
    "fluent": Path("@lobehub", "fluent-emoji-3d", "assets"),
}
QUESTIONS = {
    "kind": ("What kind of thing is this?", "Which kind of thing does the picture show?"),
    "yesno": ("Is this a kind of {}?", "Does the picture show something of the kind {}?"),
    "colour": ("Which colour does it mostly have?", "What is its main colour?"),
    "name": ("What is this?", "Name what the picture shows."),
}
SHARES = {"test": 0.2, "val": 0.1}  # of the concepts of each kind; the others are trained
MOST_OF_A_KIND = 40
# Of one view after the other. The second answer can be told from the first, but for a colour or a "no".
_ASKED = (("kind", "colour"), ("yesno", "kind"), ("kind", "name"), ("yesno", "colour"))
_MARGIN, _TURN = 0.85, 12  # of a tested picture's side; degrees that a trained one may be turned
_QUALITY = 92


@dataclass(frozen=True)
class Concept:
    """A thing that several artists have drawn.

    Attributes:
        name: Unicode's short name.
        kind: one of `KINDS`.
        pictures: drawing by artist.
    """

    name: str
    kind: str
    pictures: dict[str, Path]


def read_concepts(packages: Path) -> list[Concept]:
    """Read what the packages have of our kinds, one entry for each thing, in Unicode's order.

    Args:
        packages: the folder `node_modules`.

    Raises:
        DataError: a package is missing or of another form.
    """
    try:
        labels, groups = (
            json.loads(read_user_text(packages / file, error=DataError)) for file in (LABELS, GROUPS)
        )
        names = {int(number): name for number, name in groups["subgroups"].items()}
        entries = [
            (entry["label"], names[entry["subgroup"]], entry["hexcode"])
            for entry in sorted(labels, key=lambda entry: entry.get("order", 0))
            if "subgroup" in entry and "gender" not in entry
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{packages / LABELS}, {GROUPS.name}: not as emojibase-data 17.0.0 has them ({error!r})."
        ) from None
    files = {artist: _drawings(packages / folder) for artist, folder in ARTISTS.items()}
    kinds = {group: kind for kind, of_it in KINDS.items() for group in of_it}
    concepts: dict[str, Concept] = {}
    for label, group, code in entries:
        name = label.removesuffix(" face") if group.startswith("animal-") else label  # cat face, cat
        drawings = {artist: its[_code(code)] for artist, its in files.items() if _code(code) in its}
        if group in kinds and drawings and name not in NO_VEHICLES | concepts.keys():
            concepts[name] = Concept(name, kinds[group], drawings)
    return list(concepts.values())


def _drawings(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder. Give node_modules of the packages that {__spec__.name} names."
        )
    return {_code(path.stem): path for path in sorted(folder.iterdir())}


def _code(name: str) -> str:
    """Code points as all packages have them: without the selector of the coloured form."""
    return name.lower().replace("-fe0f", "")


def split(concepts: Sequence[Concept], rng: random.Random) -> dict[str, list[Concept]]:
    """Concepts of each kind into train, val and test."""
    parts: dict[str, list[Concept]] = defaultdict(list)
    for kind in KINDS:
        its = [concept for concept in concepts if concept.kind == kind]
        its = rng.sample(its, min(len(its), MOST_OF_A_KIND))
        for part, share in SHARES.items():
            number = round(share * len(its))
            parts[part] += its[:number]
            its = its[number:]
        parts["train"] += its
    return dict(parts)


def turns_about(concept: Concept, colour: str | None, rng: random.Random) -> dict[str, tuple[str, str]]:
    """A question and its answer of each type, in a wording drawn; a yes/no question is as often yes as no."""
    is_yes = rng.random() < 0.5
    asked = concept.kind if is_yes else rng.choice([kind for kind in KINDS if kind != concept.kind])
    answers = {
        "kind": concept.kind,
        "yesno": "yes" if is_yes else "no",
        **({"colour": colour} if colour else {}),
        "name": concept.name,
    }
    return {
        kind: (rng.choice(QUESTIONS[kind]).replace("{}", asked), answer) for kind, answer in answers.items()
    }


def conversation(image: str, turns: Sequence[tuple[str, str]], **more: str) -> dict[str, Any]:
    """A record as LLaVA has it, its picture before the first question."""
    said = [
        {"from": role, "value": text}
        for turn in turns
        for role, text in zip(("human", "gpt"), turn, strict=True)
    ]
    said[0]["value"] = f"<image>\n{said[0]['value']}".rstrip("\n")
    return {"id": "-".join([Path(image).stem, *more.values()]), "image": image, **more, "conversations": said}


def draw_for_test(drawing: Image.Image) -> Image.Image:
    """A drawing with a margin, on white."""
    return _placed(drawing, round(SIZE * _MARGIN), (255, 255, 255), (0.5, 0.5))


def draw_for_training(drawing: Image.Image, rng: random.Random) -> Image.Image:
    """A drawing of any size, place and side, a little turned; on white or on something pale."""
    turned = drawing.rotate(rng.uniform(-_TURN, _TURN), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pale = tuple(rng.randint(170, 255) for _ in range(3))
    ground = (255, 255, 255) if rng.random() < 0.5 else pale
    return _placed(turned, round(SIZE * rng.uniform(0.6, 1.0)), ground, (rng.random(), rng.random()))


def _placed(
    drawing: Image.Image, side: int, ground: tuple[int, ...], place: tuple[float, float]
) -> Image.Image:
    sheet = Image.new("RGBA", (SIZE, SIZE), (*ground, 255))
    corner = tuple(round((SIZE - side) * share) for share in place)
    sheet.alpha_composite(drawing.resize((side, side), Image.Resampling.BICUBIC), corner)
    return sheet.convert("RGB")


def records_of(
    concepts: Iterable[Concept], part: str, views: int, out: Path, rng: random.Random
) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Draw the pictures of a part below `out`; yield, picture by picture, the records of each file."""
    for concept in concepts:
        for artist, path in concept.pictures.items():
            with Image.open(path) as file:
                drawing = file.convert("RGBA")
            colour = main_colour(drawing)
            stem = f"{part}/{artist}-{_code(path.stem)}"
            if part != "train":
                draw_for_test(drawing).save(out / f"{stem}.jpg", quality=_QUALITY)
                turns = turns_about(concept, colour, rng)
                yield {
                    part: [
                        conversation(f"{stem}.jpg", [turns[kind]], type=kind)
                        for kind in turns
                        if kind != "name"
                    ]
                }
                continue
            for view in range(views):
                image = f"{stem}-{view}.jpg"
                draw_for_training(drawing, rng).save(out / image, quality=_QUALITY)
                turns = turns_about(concept, colour, rng)
                asked = _ASKED[view % len(_ASKED)]
                caption = f"{concept.kind}: {concept.name}" + (f", mostly {colour}" if colour else "")
                yield {
                    "captions": [conversation(image, [("", caption)])],
                    "train": [conversation(image, [turns[kind] for kind in asked if kind in turns])],
                }


def build(packages: Path, out: Path, *, views: int, seed: int = 0, force: bool = False) -> dict[str, int]:
    """Write captions.json, train.json, val.json and test.json with their pictures.

    Args:
        packages: the folder `node_modules`.
        out: directory of the data; there is nothing before all of it is.
        views: pictures to train on of each drawing.
        seed: of the split, the wordings and the views.
        force: replace an existing `out`.

    Returns:
        Number of concepts, and of the records of each file.

    Raises:
        DataError: a package is missing or of another form.
        OutputExistsError: `out` exists and `force` is false.
    """
    parts = split(read_concepts(packages), random.Random(seed))
    files: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with output_directory(out, force=force) as work, progress() as bar:
        for part, concepts in parts.items():
            (work / part).mkdir()
            shown = bar.track(concepts, description=part)
            for made in records_of(shown, part, views, work, random.Random(f"{seed} {part}")):
                for name, records in made.items():
                    files[name] += records
        for name, records in files.items():
            write_json(work / f"{name}.json", records)
    return {"concepts": sum(map(len, parts.values())), **{name: len(its) for name, its in files.items()}}


def main(
    packages: Annotated[Path, typer.Argument(help="The folder node_modules.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory of the data.")],
    views: Annotated[int, typer.Option(min=1, help="Pictures to train on of each drawing.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the split, the wordings and the views.")] = 0,
) -> None:
    """Write conversations about emoji, and their pictures; print one line of JSON."""
    print_json(build(packages, out, views=views, seed=seed))


if __name__ == "__main__":
    tools.run(main)
