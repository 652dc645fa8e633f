"""How far each checkpoint line is from the numbers that upstream's own classes gave for it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from tests import nanovlm
from tests.integration import conformance
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.model.assets import Assets, read_assets
from tinyllava_edge.model.language_model import continued_logits
from tinyllava_edge.model.vlm import TinyLlava, load_model
from tinyllava_edge.prompt import Turn, place_markers
from tinyllava_edge.runtimes.model import Model

FIXTURES = Path(__file__).parents[1] / "fixtures" / "lines"
_IMAGES = Path(__file__).parents[1] / "fixtures" / "images"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/golden.npz"))
NANOVLM = [f"nanovlm/{generation}" for generation in nanovlm.GENERATIONS]
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


@dataclass(frozen=True)
class Case:
    """A conversation: upstream's prompt, ids (-200 for a picture), logits and most probable tokens."""

    turns: list[Turn]
    pictures: list[int]
    prompt: str
    ids: list[int]
    logits: Floats  # [positions, vocab], all or the last of them
    greedy: list[int]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A checkpoint that upstream's classes wrote, and what they computed with it."""

    name: str
    upstream: str  # repository and commit
    checkpoint: Checkpoint
    pictures: list[Path]
    pixels: list[Floats]
    tower: list[Floats]
    connector: list[Floats]
    cases: dict[str, Case]
    never: list[int] = field(default_factory=list)  # what upstream's `min_new_tokens` keeps from being chosen

    @cached_property
    def assets(self) -> Assets:
        """Template, tokenizer and preprocessing."""
        return read_assets(self.checkpoint)

    def shown(self, case: Case) -> list[Path]:
        """The pictures of a case."""
        return [self.pictures[index] for index in case.pictures]


def open_line(name: str) -> Line:
    """One of `NAMES` or `NANOVLM`."""
    return _of_nanovlm(name.partition("/")[2]) if name in NANOVLM else _of_llava(name)


def _of_llava(name: str) -> Line:
    folder = FIXTURES / name
    golden: dict[str, Any] = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    arrays = dict(np.load(folder / "golden.npz"))
    template = golden["template"]
    checkpoint = Checkpoint(
        folder / "model",
        sources=FIXTURES / "sources",
        template=_OF_LLAVA_PHI.get(template, template),
        allow_pickle=True,
    )
    cases = {}
    for case, given in golden["prompts"].items():
        keys = (f"prompt/{case}/{kind}" for kind in ("logits", "tail_logits"))
        cases[case] = Case(
            turns=[tuple(turn) for turn in given["turns"]],
            pictures=given["images"],
            prompt=given["prompt"],
            ids=golden["templates"][template][case]["input_ids"],
            logits=next(arrays[key] for key in keys if key in arrays),
            greedy=arrays[f"prompt/{case}/greedy_ids_no_eos"].tolist(),
        )
    values = ("pixel_values", "vision", "connector")
    numbers = range(len(golden["images"]))
    pixels, tower, connector = ([arrays[f"image{number}/{key}"] for number in numbers] for key in values)
    return Line(
        name=name,
        upstream=golden["upstream"],
        checkpoint=checkpoint,
        pictures=[_IMAGES / picture for picture in golden["images"]],
        pixels=pixels,
        tower=tower,
        connector=connector,
        cases=cases,
        never=list(checkpoint.config.language.eos_token_ids),
    )


def _of_nanovlm(generation: str) -> Line:
    oracle = nanovlm.oracle(generation)
    facts = json.loads((nanovlm.FOLDER / generation / "oracle.json").read_text(encoding="utf-8"))
    return Line(
        name=f"nanovlm/{generation}",
        upstream=facts["upstream"],
        checkpoint=nanovlm.opened(generation),
        pictures=oracle.pictures,
        pixels=list(oracle.pixels),
        tower=list(oracle.tower),
        connector=list(oracle.embeddings),
        cases={
            name: Case(given.turns, [0], given.text, given.ids, given.logits, given.greedy)
            for name, given in oracle.prompts.items()
        },
    )


class Stages(Protocol):
    """What computes a line's stages here."""

    def prompt(self, case: Case) -> str: ...
    def ids(self, case: Case) -> list[int]: ...
    def pixels(self, picture: Path) -> Floats: ...
    def vision(self, pixels: Floats) -> tuple[Floats, Floats]: ...
    def logits(self, case: Case) -> Floats: ...
    def greedy(self, case: Case) -> list[int]: ...


class Torch:
    """The reference, in float32."""

    def __init__(self, line: Line) -> None:
        self._line, self._model = line, load_model(line.checkpoint)
        self._tokenizer = line.assets.text_tokenizer()
        self._rows: list[Floats] = []

    def _placed(self, case: Case) -> list[Turn]:
        return place_markers(case.turns, len(case.pictures), self._line.assets.template)

    def prompt(self, case: Case) -> str:
        return self._line.assets.template.render(self._placed(case))

    def ids(self, case: Case) -> list[int]:
        return self._tokenizer.encode(self._line.assets.template, self._placed(case))

    def pixels(self, picture: Path) -> Floats:
        return preprocess(open_picture(picture.read_bytes()), self._line.assets.preprocessing)

    def vision(self, pixels: Floats) -> tuple[Floats, Floats]:
        tower, rows = conformance.torch_vision(self._model, pixels)
        self._rows = list(rows)
        return tower, rows

    def _spliced(self, case: Case) -> torch.Tensor:
        shown = np.stack([self._rows[index] for index in case.pictures] or [self._rows[0]])
        return self._model.splice(self.ids(case), torch.from_numpy(shown[: len(case.pictures)]))[None]

    @torch.no_grad()
    def logits(self, case: Case) -> Floats:
        found: Floats = self._model.language_model(inputs_embeds=self._spliced(case)).logits[0].numpy()
        return found

    @torch.no_grad()
    def greedy(self, case: Case) -> list[int]:
        return list(_greedy(self._model, self._spliced(case), len(case.greedy), self._line.never))


def _greedy(model: TinyLlava, rows: torch.Tensor, count: int, never: Sequence[int]) -> Iterator[int]:
    language: Any = model.language_model
    cache = DynamicCache()
    for _ in range(count):
        logits = continued_logits(language, rows, cache)[0, -1]
        logits[list(never)] = -torch.inf
        yield (token := int(logits.argmax()))
        rows = language.get_input_embeddings()(torch.tensor([[token]]))


class Bundled:
    """ONNX Runtime (fp32) and llama.cpp (f32, f32 KV) on an exported bundle."""

    def __init__(self, line: Line, model: Model) -> None:
        self._line, self._model = line, model

    def prompt(self, case: Case) -> str:
        manifest = self._model.bundle.manifest
        template = manifest.prompt.template
        return template.render(place_markers(case.turns, len(case.pictures), template))

    def ids(self, case: Case) -> list[int]:
        return self._model.tokenize(case.turns, num_pictures=len(case.pictures))

    def pixels(self, picture: Path) -> Floats:
        return preprocess(open_picture(picture), self._model.bundle.manifest.vision.preprocessing)

    def vision(self, pixels: Floats) -> tuple[Floats, Floats]:
        return conformance.onnx_vision(self._model, pixels)

    def logits(self, case: Case) -> Floats:
        return self._model.logits(case.turns, self._line.shown(case))

    def greedy(self, case: Case) -> list[int]:
        shown, count = self._line.shown(case), len(case.greedy)
        return conformance.bundle_greedy(self._model, case.ids, shown, count, never=self._line.never)


def measure(line: Line, stages: Stages) -> Errors:
    """Every stage against upstream's; a picture's tokens in nanoVLM's prompts count as ids alone."""
    cases = line.cases.values()
    pixels = np.stack([stages.pixels(picture) for picture in line.pictures])
    tower, rows = stages.vision(pixels)
    prompts = {case.prompt: stages.prompt(case) for case in cases}
    if line.name in NANOVLM:
        prompts = {
            text.replace("<|image|>", ""): found.replace("<image>", "") for text, found in prompts.items()
        }
    return Errors(
        wrong_prompts=sum(text != found for text, found in prompts.items()),
        wrong_ids=sum(stages.ids(case) != case.ids for case in cases),
        pixels=max(map(_largest, pixels, line.pixels)),
        tower=max(map(_largest, tower, line.tower)),
        connector=max(map(_largest, rows, line.connector)),
        logits=max(_largest(stages.logits(case), case.logits) for case in cases),
        wrong_greedy=sum(stages.greedy(case) != case.greedy for case in cases),
    )


def _largest(found: Floats, expected: Floats) -> float:
    if len(found) > len(expected) and found.ndim == 2:  # logits of the last positions alone
        found = found[-len(expected) :]
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max())
