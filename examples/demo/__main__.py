"""Ask nano the drawn questions, and count: `python -m examples.demo [BUNDLE]`, nano's own bundle by default.

The pictures are shown where standard output is a terminal with colours; NO_COLOR leaves them out.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from rich.console import Console
from rich.text import Text

from tinyllava_edge import open_bundle
from tinyllava_edge.errors import TinyLlavaEdgeError
from tinyllava_edge.process import USER_ERROR, run_program, say

HERE = Path(__file__).parent
SIDE = 16  # columns of a picture, and half as many lines
SHOWN_ROWS = 2  # of pictures on the screen; all are asked about
ARTISTS = {"google": "Noto", "twitter": "Twemoji", "fluent3d": "Fluent"}
KINDS = {"kind": "kind of thing", "yesno": "yes or no"}


class Asked(NamedTuple):
    """A question about a picture, with the answer that is right and the one that the model gave."""

    picture: str
    thing: str
    type: str
    question: str
    right: str
    said: str

    @property
    def is_right(self) -> bool:
        """As `tinyllava-edge eval` judges: equal but for case, outer spaces and a full stop."""
        return self.said.strip().removesuffix(".").lower() == self.right.lower()

    def __str__(self) -> str:
        shown = f"{self.question} " if self.type == "yesno" else ""
        return f"{shown}{self.said}" if self.is_right else f"{shown}{self.said} (WRONG: {self.right})"


def ask_all(bundle: str, questions: Path = HERE / "questions.json", **options: Any) -> list[Asked]:
    """Every question of the file by itself, in its order; `options` are those of `open_bundle`."""
    rows = json.loads(questions.read_text(encoding="utf-8"))
    texts = [row["conversations"][0]["value"].removeprefix("<image>\n") for row in rows]
    pictures = [str(questions.parent / row["image"]) for row in rows]
    with open_bundle(bundle, **options) as model:
        answered = list(model.ask_each(texts, pictures, max_tokens=16))
    return [
        Asked(
            picture=one.picture,
            thing=f"{row['concept']} ({ARTISTS[row['vendor']]})",
            type=row["type"],
            question=one.question,
            right=row["conversations"][1]["value"],
            said=one.answer if one.answer is not None else str(one.error),
        )
        for row, one in zip(rows, answered, strict=True)
    ]


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score interval): within 0 and 1, and never of no width."""
    z = 1.959964
    share, weight = right / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z * sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def count_line(asked: list[Asked], kind: str) -> str:
    """How many answers of a kind are right, the interval, and what a guess would get."""
    of_kind = [one for one in asked if one.type == kind]
    right, total = sum(one.is_right for one in of_kind), len(of_kind)
    low, high = wilson(right, total)
    guess, times = Counter(one.right for one in of_kind).most_common(1)[0]
    return (
        f"{KINDS[kind]}: {right} of {total} right, 95 % interval {100 * low:.0f} to {100 * high:.0f} % "
        f'(always "{guess}": {times} of {total})'
    )


def picture_lines(path: str) -> list[Text]:
    """A picture for a terminal: two pixels in a character, the upper half in front of the lower one."""
    with Image.open(path) as file:
        pixels = file.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS).load()
    assert pixels is not None
    lines = []
    for y in range(0, SIDE, 2):
        line = Text()
        for x in range(SIDE):
            upper, lower = ("#{:02x}{:02x}{:02x}".format(*pixels[x, row]) for row in (y, y + 1))  # type: ignore[misc]
            line.append("▀", f"{upper} on {lower}")
        lines.append(line)
    return lines


def show_pictures(console: Console, asked: list[Asked]) -> None:
    """The first pictures side by side, with what was said of each below; nothing without colours."""
    if not console.is_terminal or console.no_color or console.color_system not in ("truecolor", "256"):
        return
    each = SIDE + 4
    columns = max(1, console.width // each)
    kinds = [one for one in asked if one.type == "kind"]
    for start in range(0, SHOWN_ROWS * columns, columns):
        shown = kinds[start : start + columns]
        rows = [picture_lines(one.picture) for one in shown]
        console.print(*(Text("    ").join(line) for line in zip(*rows, strict=True)), sep="\n")
        for words in (
            lambda one: one.thing,
            lambda one: f"{'right' if one.is_right else 'WRONG'}: {one.said}",
        ):
            console.print("".join(f"{words(one)[: each - 1]:{each}}" for one in shown), highlight=False)
        console.print()


def lines_of(asked: list[Asked]) -> Iterator[str]:
    """A line for each picture, and the counts."""
    about: dict[str, list[Asked]] = {}
    for one in asked:
        about.setdefault(one.picture, []).append(one)
    for answers in about.values():
        kind, other = (next((one for one in answers if one.type == name), None) for name in KINDS)
        yield f"{answers[0].thing:34}{kind!s:42}{other}"
    yield f"\n{len(about)} pictures, drawn by a seed, of things that nano was never trained on:"
    yield from (count_line(asked, kind) for kind in KINDS)


def main() -> None:
    """The command; one line where an argument is wrong."""
    bundle = sys.argv[1] if len(sys.argv) > 1 else "nano"
    console = Console(markup=False, emoji=False)
    try:
        asked = ask_all(bundle)
    except TinyLlavaEdgeError as error:
        say(str(error))
        sys.exit(USER_ERROR)
    show_pictures(console, asked)
    sys.stdout.writelines(f"{line}\n" for line in lines_of(asked))


if __name__ == "__main__":
    run_program(main)
