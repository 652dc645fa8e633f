"""What a user does with 200 rows of own data: train with LoRA, merge, export, verify, ask. Real commands."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

pytestmark = pytest.mark.slow

NUM_ROWS = 200
COLOURS = ("red", "green", "blue", "orange", "black")


def _write_rows(folder: Path) -> Path:
    """A LLaVA JSON of coloured discs and boxes, in sizes and shapes as users have them."""
    rng = random.Random(0)
    records = []
    for index in range(NUM_ROWS):
        colour, shape = rng.choice(COLOURS), rng.choice(("disc", "box"))
        image = Image.new("RGB", (rng.randint(60, 200), rng.randint(60, 200)), "white")
        draw = ImageDraw.Draw(image)
        corners = (10, 10, image.width - 12, image.height - 12)
        (draw.ellipse if shape == "disc" else draw.rectangle)(corners, fill=colour)
        image.save(folder / f"{index}.png")
        question, answer = rng.choice((("Which colour is it?", colour), ("Disc or box?", shape)))
        records.append(
            {
                "id": f"row-{index}",
                "image": f"{index}.png",
                "conversations": [
                    {"from": "human", "value": f"<image>\n{question}"},
                    {"from": "gpt", "value": answer},
                ],
            }
        )
    (folder / "my.json").write_text(json.dumps(records))
    return folder / "my.json"


def _run(*arguments: str) -> str:
    command = [sys.executable, "-m", "tinyllava_edge", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_two_hundred_rows_are_learned_merged_exported_and_verified(tmp_path: Path) -> None:
    data, tuned, bundle = str(_write_rows(tmp_path)), str(tmp_path / "tuned"), str(tmp_path / "bundle")
    lora = ["--recipe", "custom", "--lora-rank", "16", "--learning-rate", "2e-3"]
    lora += ["--batch-size", "10", "--global-batch-size", "10"]
    printed = _run("train", "--data", data, "--from", "nano", "-o", tuned, *lora, "--epochs", "2", "--json")
    outcome = json.loads(printed)
    assert outcome["steps"] == 40
    assert outcome["last_loss"] < 0.5 * outcome["first_loss"]
    assert json.loads((tmp_path / "tuned" / "tinyllava_edge.json").read_text())["merge_error"] <= 1e-5
    _run("export", tuned, "-o", bundle, "--vision", "fp16", "--language", "q8_0")
    _run("verify", bundle, "--checkpoint", tuned, "--quick")
    answer = _run("run", bundle, str(tmp_path / "0.png"), "Disc or box?")
    assert answer.split()[0] in ("disc", "box")
