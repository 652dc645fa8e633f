"""What torch computes in float32 of a few pictures and prompts, for a bundle's reference/ folder."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.model.assets import Assets
from tinyllava_edge.model.language_model import continued_logits
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.prompt import Turn, place_markers
from tinyllava_edge.reference_tensors import ReferencePrompt, ReferenceTensors, write_reference_tensors

# Photographs that come with scikit-image, cut and made small: astronaut (NASA, public domain), rocket
# (SpaceX, public domain), chelsea (Stefan van der Walt, CC0; its alpha channel is ours).
PICTURES_FOLDER = Path(__file__).parent / "pictures"
PICTURES = ("portrait.png", "wide.png", "transparent.png")
# name, turns, pictures
PROMPTS: tuple[tuple[str, list[Turn], list[int]], ...] = (
    ("single", [("<image>\nWhat is this?", None)], [0]),
    (
        "two_turns",
        [("<image>\nWhat can you see?", "A photograph."), ("Which colours are there?", None)],
        [1],
    ),
    ("text_only", [("Which animals can fly?", None)], []),
    ("two_pictures", [("<image>\n<image>\nWhat is different?", None)], [2, 0]),
)
OF_A_BUDGET = PROMPTS[:1]  # that a smaller budget of visual tokens has, too
GREEDY_TOKENS = 16
MAX_PASSES = GREEDY_TOKENS * len(PROMPTS)
MORE_PASSES = GREEDY_TOKENS * len(OF_A_BUDGET)  # for each further budget
LOGIT_ROWS = 32  # of a prompt's last positions: a whole prompt of a large vocabulary would be 500 MB


@torch.no_grad()
def write_reference(
    root: Path, model: TinyLlava, assets: Assets, budget: int | None = None
) -> ReferenceTensors:
    """Compute and write the folder; then, with a model at each further budget of visual tokens, what is its.

    The language model runs once for each prompt and once for each further token: `MAX_PASSES` times at most,
    `MORE_PASSES` for a budget.
    """
    files = [PICTURES_FOLDER / name for name in PICTURES]
    pixels = np.stack([preprocess(open_picture(file), assets.preprocessing) for file in files])
    tower = model.vision_tower(torch.from_numpy(pixels))
    embeddings = model.connector(tower)
    prompts: list[ReferencePrompt] = []
    logits: dict[str, npt.NDArray[np.float32]] = {}
    for name, turns, pictures in PROMPTS if budget is None else OF_A_BUDGET:
        placed = place_markers(turns, len(pictures), assets.template)
        ids = assets.text_tokenizer().encode(assets.template, placed)
        rows = model.splice(ids, embeddings[pictures])  # [positions, hidden]
        if len(rows) + GREEDY_TOKENS > model.config.language.max_position_embeddings:
            continue
        logits[name], greedy = _continue(model, rows, assets.stop_ids)
        prompts.append(
            ReferencePrompt(
                name=name,
                turns=tuple(placed),
                pictures=tuple(pictures),
                input_ids=tuple(ids),
                positions=len(rows),
                logit_positions=tuple(range(len(rows) - len(logits[name]), len(rows))),
                **greedy,
            )
        )
    found = ReferenceTensors(
        pictures=files,
        pixels=pixels,
        tower=tower.numpy(),
        embeddings=embeddings.numpy(),
        prompts=prompts,
        logits=logits,
    )
    write_reference_tensors(root, found, budget)
    return found


def _continue(
    model: TinyLlava, rows: torch.Tensor, stop_ids: tuple[int, ...]
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Logits of the last `LOGIT_ROWS` positions, and the greedy answer up to a stop id (which is kept)."""
    cache = DynamicCache()
    found = continued_logits(model.language_model, rows[None], cache, keep=LOGIT_ROWS)[0]
    logits: npt.NDArray[np.float32] = found.numpy()
    ids: list[int] = []
    margins: list[float] = []
    while True:
        best = found[-1].topk(2)
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        if len(ids) == GREEDY_TOKENS or ids[-1] in stop_ids:
            return logits, {"greedy_ids": ids, "greedy_margins": margins}
        row = model.splice(ids[-1:], torch.zeros(0, 0, rows.shape[1]))
        found = continued_logits(model.language_model, row[None], cache)[0]
