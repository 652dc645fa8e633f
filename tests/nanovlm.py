"""The tiny checkpoints that nanoVLM's own classes wrote, and what upstream's code made of them."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.checkpoint.opened import Checkpoint

FOLDER = Path(__file__).parent / "fixtures" / "lines" / "nanovlm"
SOURCES = FOLDER / "sources"
GENERATIONS = ("prefix", "tokens", "chat", "row", "global")
Floats = npt.NDArray[np.float32]


class Prompt(NamedTuple):
    """One of upstream's prompts about the first picture."""

    turns: list[tuple[str, str | None]]
    text: str
    ids: list[int]  # -200 for the picture
    logits: Floats  # [positions, vocab]
    greedy: list[int]


class Oracle(NamedTuple):
    """What upstream's code gave."""

    pictures: list[Path]
    pixels: Floats
    tower: Floats
    embeddings: Floats
    eos_id: int
    tokens: int
    prompts: dict[str, Prompt]


def opened(generation: str) -> Checkpoint:
    return Checkpoint(FOLDER / generation, sources=SOURCES)


def changed(folder: Path, generation: str, **values: Any) -> Checkpoint:
    """A copy whose config.json has other values; None removes a key."""
    copy = folder / generation
    shutil.copytree(FOLDER / generation, copy)
    raw = json.loads((copy / "config.json").read_text()) | values
    kept = {key: value for key, value in raw.items() if value is not None}
    (copy / "config.json").write_text(json.dumps(kept))
    return Checkpoint(copy, sources=SOURCES)


@cache
def oracle(generation: str) -> Oracle:
    facts = json.loads((FOLDER / generation / "oracle.json").read_text())
    arrays = load_file(FOLDER / generation / "oracle.safetensors")
    return Oracle(
        pictures=[FOLDER.parents[1] / "images" / name for name in facts["pictures"]],
        pixels=arrays["pixels"],
        tower=arrays["tower"],
        embeddings=arrays["embeddings"],
        eos_id=facts["eos_token_id"],
        tokens=facts["tokens"],
        prompts={
            prompt["name"]: Prompt(
                turns=[tuple(turn) for turn in prompt["turns"]],
                text=prompt["text"],
                ids=_with_marker(prompt["ids"], facts["image_token_id"]),
                logits=arrays[f"logits.{prompt['name']}"],
                greedy=prompt["greedy"],
            )
            for prompt in facts["prompts"]
        },
    )


def _with_marker(ids: list[int], image: int | None) -> list[int]:
    """One -200 in the place of a picture's tokens; v0.1 has none, and rows in front of all text."""
    if image is None:
        return [IMAGE_TOKEN_ID, *ids]
    first = ids.index(image)
    return [*ids[:first], IMAGE_TOKEN_ID, *(token for token in ids[first:] if token != image)]
