"""How far each fixture of LLaVA's code line is from the numbers that upstream's own classes gave for it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from tests import nanovlm
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.model.assets import Assets, read_assets
from tinyllava_edge.model.language_model import continued_logits
from tinyllava_edge.model.vlm import TinyLlava, load_model
from tinyllava_edge.prompt import place_markers

FIXTURES = Path(__file__).parents[1] / "fixtures" / "lines"
_IMAGES = Path(__file__).parents[1] / "fixtures" / "images"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/golden.npz"))
_OF_LLAVA_PHI = {"v0": "phi-2_v0"}  # LLaVA's own v0 is another text
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How many prompts of a fixture have other text, ids or greedy answers, and the largest differences."""

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
            template=_OF_LLAVA_PHI.get(self.golden["template"], self.golden["template"]),
            allow_pickle=True,
        )

    @property
    def cases(self) -> int:
        """How many prompts there are."""
        return len(self.golden["prompts"])

    @property
    def upstream(self) -> str:
        """Repository and commit."""
        return str(self.golden["upstream"])

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
        """Upstream's."""
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
        logits = {case: next_logits(self.model, made[case][1], shown[case]) for case in cases}
        never = self.checkpoint.config.language.eos_token_ids
        wrong_greedy = 0
        for case in cases:
            expected = self.arrays[f"prompt/{case}/greedy_ids_no_eos"].tolist()
            found = list(greedy(self.model, made[case][1], shown[case], len(expected), never))
            wrong_greedy += found != expected
        numbers = range(len(files))
        return Errors(
            wrong_prompts=sum(made[case][0] != self.golden["prompts"][case]["prompt"] for case in cases),
            wrong_ids=sum(made[case][1] != self.golden_ids(case) for case in cases),
            pixels=max(_largest(pixels[k], self.arrays[f"image{k}/pixel_values"]) for k in numbers),
            tower=max(_largest(tower[k].numpy(), self.arrays[f"image{k}/vision"]) for k in numbers),
            connector=max(_largest(rows[k].numpy(), self.arrays[f"image{k}/connector"]) for k in numbers),
            logits=max(_largest(logits[case], self._golden_logits(case)) for case in cases),
            wrong_greedy=wrong_greedy,
        )

    def _golden_logits(self, case: str) -> Floats:
        key = f"prompt/{case}/logits"
        found: Floats = self.arrays[key if key in self.arrays else f"prompt/{case}/tail_logits"]
        return found


def next_logits(model: TinyLlava, ids: list[int], pictures: torch.Tensor) -> Floats:
    """[positions, vocab] of a prompt with its pictures' rows."""
    with torch.no_grad():
        output = model.language_model(inputs_embeds=model.splice(ids, pictures)[None])
    found: Floats = output.logits[0].numpy()
    return found


def greedy(
    model: TinyLlava, ids: list[int], pictures: torch.Tensor, count: int, never: Sequence[int]
) -> Iterator[int]:
    """The most probable tokens; `never` is what upstream's `min_new_tokens` keeps from being chosen."""
    language: Any = model.language_model
    cache = DynamicCache()
    with torch.no_grad():
        rows = model.splice(ids, pictures)[None]
        for _ in range(count):
            logits = continued_logits(language, rows, cache)[0, -1]
            logits[list(never)] = -torch.inf
            yield (token := int(logits.argmax()))
            rows = language.get_input_embeddings()(torch.tensor([[token]]))


class NanoVlm:
    """The same of one generation of nanoVLM."""

    def __init__(self, name: str) -> None:
        self.name = f"nanovlm/{name}"
        self.checkpoint, self._oracle = nanovlm.opened(name), nanovlm.oracle(name)
        self.cases = len(self._oracle.prompts)
        facts = json.loads((nanovlm.FOLDER / name / "oracle.json").read_text(encoding="utf-8"))
        self.upstream = str(facts.get("upstream") or facts.get("commit") or "huggingface/nanoVLM")

    def measure(self) -> Errors:
        """Every stage against upstream's."""
        expected, assets, model = self._oracle, read_assets(self.checkpoint), load_model(self.checkpoint)
        pixels = np.stack(
            [preprocess(open_picture(path.read_bytes()), assets.preprocessing) for path in expected.pictures]
        )
        tokenizer = assets.text_tokenizer()
        with torch.no_grad():
            tower = model.vision_tower(torch.from_numpy(pixels))
            rows = model.connector(tower)
        placed = {
            name: place_markers(prompt.turns, 1, assets.template) for name, prompt in expected.prompts.items()
        }
        made = {name: tokenizer.encode(assets.template, turns) for name, turns in placed.items()}
        texts = {name: assets.template.render(turns).replace("<image>", "") for name, turns in placed.items()}
        wanted = expected.prompts
        return Errors(
            wrong_prompts=sum(texts[name] != wanted[name].text.replace("<|image|>", "") for name in made),
            wrong_ids=sum(made[name] != wanted[name].ids for name in made),
            pixels=_largest(pixels, expected.pixels),
            tower=_largest(tower.numpy(), expected.tower),
            connector=_largest(rows.numpy(), expected.embeddings),
            logits=max(
                _largest(next_logits(model, made[name], rows[:1]), wanted[name].logits) for name in made
            ),
            wrong_greedy=sum(
                list(greedy(model, made[name], rows[:1], len(wanted[name].greedy), ())) != wanted[name].greedy
                for name in made
            ),
        )


def _largest(found: Floats, expected: Floats) -> float:
    if len(found) > len(expected) and found.ndim == 2:  # logits of the last positions alone
        found = found[-len(expected) :]
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max())
