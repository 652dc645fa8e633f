"""How far each fixture of LLaVA's code line is from the numbers that upstream's own classes gave for it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.model.assets import Assets, read_assets
from tinyllava_edge.model.language_model import continued_logits
from tinyllava_edge.model.vlm import TinyLlava, load_model
from tinyllava_edge.prompt import place_markers

FIXTURES = Path(__file__).parents[1] / "fixtures" / "lines"
_IMAGES = Path(__file__).parents[1] / "fixtures" / "images"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/golden.npz"))
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Of one fixture: how many prompts have other text, ids or greedy answers, and the largest differences."""

    wrong_prompts: int
    wrong_ids: int
    pixels: float
    tower: float
    connector: float
    logits: float
    wrong_greedy: int


class Fixture:
    """A checkpoint that upstream's classes wrote, and what they computed with it."""

    def __init__(self, name: str) -> None:
        folder = FIXTURES / name
        self.name = name
        self.golden: dict[str, Any] = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        self.arrays = np.load(folder / "golden.npz")
        self.checkpoint = Checkpoint(
            folder / "model",
            sources=FIXTURES / "sources",
            template=self.golden["template"],
            allow_pickle=True,
        )

    @cached_property
    def assets(self) -> Assets:
        """Template, tokenizer and preprocessing."""
        return read_assets(self.checkpoint)

    @cached_property
    def model(self) -> TinyLlava:
        """In float32."""
        return load_model(self.checkpoint)

    def ids(self, case: str) -> tuple[str, list[int]]:
        """Prompt and ids of a case, as they are made here."""
        given = self.golden["prompts"][case]
        turns = place_markers([tuple(turn) for turn in given["turns"]], len(given["images"]))
        template = self.assets.template
        return template.render(turns), self.assets.text_tokenizer().encode(template, turns)

    def golden_ids(self, case: str) -> list[int]:
        """Upstream's; Bunny's forward puts 0 in the place of -200, so not those of golden.npz."""
        found: list[int] = self.golden["templates"][self.golden["template"]][case]["input_ids"]
        return found

    def measure(self) -> Errors:
        """Every stage against upstream's."""
        files = [(_IMAGES / name).read_bytes() for name in self.golden["images"]]
        pixels = np.stack([preprocess(open_picture(data), self.assets.preprocessing) for data in files])
        cases = list(self.golden["prompts"])
        made = {case: self.ids(case) for case in cases}
        with torch.no_grad():
            tower = self.model.vision_tower(torch.from_numpy(pixels))
            rows = self.model.connector(tower)
        shown = {case: rows[self.golden["prompts"][case]["images"]] for case in cases}
        logits = {case: self._logits(made[case][1], shown[case]) for case in cases}
        wrong_greedy = 0
        for case in cases:
            answer = list(self._greedy(made[case][1], shown[case]))
            wrong_greedy += answer != self.arrays[f"prompt/{case}/greedy_ids_no_eos"].tolist()
        pictures = range(len(files))
        return Errors(
            wrong_prompts=sum(made[case][0] != self.golden["prompts"][case]["prompt"] for case in cases),
            wrong_ids=sum(made[case][1] != self.golden_ids(case) for case in cases),
            pixels=max(_largest(pixels[k], self.arrays[f"image{k}/pixel_values"]) for k in pictures),
            tower=max(_largest(tower[k].numpy(), self.arrays[f"image{k}/vision"]) for k in pictures),
            connector=max(_largest(rows[k].numpy(), self.arrays[f"image{k}/connector"]) for k in pictures),
            logits=max(_largest(logits[case], self._golden_logits(case)) for case in cases),
            wrong_greedy=wrong_greedy,
        )

    def _golden_logits(self, case: str) -> Floats:
        key = f"prompt/{case}/logits"
        found: Floats = self.arrays[key if key in self.arrays else f"prompt/{case}/tail_logits"]
        return found

    def _logits(self, ids: list[int], pictures: torch.Tensor) -> Floats:
        with torch.no_grad():
            output = self.model.language_model(inputs_embeds=self.model.splice(ids, pictures)[None])
        found: Floats = output.logits[0].numpy()
        return found

    def _greedy(self, ids: list[int], pictures: torch.Tensor, count: int = 8) -> Iterator[int]:
        language: Any = self.model.language_model
        cache = DynamicCache()
        with torch.no_grad():
            rows = self.model.splice(ids, pictures)[None]
            for _ in range(count):
                logits = continued_logits(language, rows, cache)[0, -1]
                for stop in self._never():
                    logits[stop] = -torch.inf
                yield (token := int(logits.argmax()))
                rows = language.get_input_embeddings()(torch.tensor([[token]]))

    def _never(self) -> tuple[int, ...]:
        """What upstream's `min_new_tokens` keeps from being chosen."""
        return self.checkpoint.config.language.eos_token_ids


def _largest(found: Floats, expected: Floats) -> float:
    if len(found) > len(expected) and found.ndim == 2:  # logits of the last positions alone
        found = found[-len(expected) :]
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max())
