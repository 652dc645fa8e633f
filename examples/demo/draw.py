"""Draws the demo's pictures and questions: `python -m examples.demo.draw VAL_CONCEPT.json`.

From the things that nano was never trained on, by a seed alone; no model is asked. ATTRIBUTION.md says
whose the pictures are.
"""

import json
import random
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
PICTURES, SEED = 40, 0


def draw(source: Path, target: Path = HERE) -> None:
    """Write questions.json, and pictures/ beside it.

    Args:
        source: rows {id, image, vendor, concept, type, conversations} of LLaVA's form; names of pictures are
            relative to its folder.
        target: folder to write to.
    """
    rows = json.loads(source.read_text(encoding="utf-8"))
    names = sorted({row["image"] for row in rows})
    drawn = random.Random(SEED).sample(names, PICTURES)
    places = {name: f"pictures/{name.replace('/', '-')}" for name in drawn}
    (target / "pictures").mkdir(exist_ok=True)
    for name, place in places.items():
        shutil.copyfile(source.parent / name, target / place)
    chosen = sorted(
        (row for row in rows if row["image"] in places), key=lambda row: drawn.index(row["image"])
    )
    lines = [json.dumps({**row, "image": places[row["image"]]}, ensure_ascii=False) for row in chosen]
    (target / "questions.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
