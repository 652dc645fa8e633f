"""A grid over a tiny checkpoint and ten records, as a user writes it."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.train.own_data import write_own_data, write_small_checkpoint

GRID: dict[str, Any] = {
    "base": {
        "from": "source",
        "data": "data.json",
        "batch_size": 3,
        "precision": "fp32",
        "threads": 1,
        "max_steps": 2,
        "pretrain": {"data": "data.json", "tune": "connector", "max_steps": 1, "precision": "fp32"},
    },
    "axes": {"learning_rate": [1e-3, 1e-4], "fraction": [0.5, 1.0]},
    "eval": {"questions": "questions.json", "images": ".", "max_tokens": 2},
}


def write_grid(folder: Path, **changes: dict[str, Any]) -> Path:
    """Write `grid.yaml`, with changes of its parts, and all that it names where that is not there."""
    if not (folder / "source").exists():
        write_own_data(folder)
        write_small_checkpoint(folder / "source")
        questions = [
            {"image": f"{number}.png", "question": "Which colour is this?", "answer": "red"}
            for number in (1, 2)
        ]
        (folder / "questions.json").write_text(json.dumps(questions))
    grid = {key: {**value, **changes.get(key, {})} for key, value in GRID.items()}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"summary": "Two rates, two shares", **grid}, sort_keys=False))
    return path
