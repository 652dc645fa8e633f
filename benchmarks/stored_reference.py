"""What is expected of a bundle, as `export` stored it beside the model: for a device without torch.

Layout of reference/: docs/bundle.md and export/reference.py.
"""

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import REFERENCE_FOLDER, Bundle
from tinyllava_edge.image import open_picture

from .reference import Continuation, GreedyAnswer, PromptCase, TextCase
from .reference_pixels import TrialPicture

Floats = npt.NDArray[np.float32]


class StoredReference:
    """Torch float32 tensors of a few pictures and prompts, written at export."""

    name = "torch float32, stored in the bundle"
    config = None

    def __init__(self, bundle: Bundle) -> None:
        raw = json.loads(bundle.path(f"{REFERENCE_FOLDER}/reference.json").read_text(encoding="utf-8"))
        with np.load(bundle.path(f"{REFERENCE_FOLDER}/reference.npz"), allow_pickle=False) as tensors:
            self._tensors: dict[str, Floats] = {name: tensors[name] for name in tensors.files}
        self.pictures = []
        for name in raw["pictures"]:
            file = bundle.path(f"{REFERENCE_FOLDER}/{name}").read_bytes()
            self.pictures.append(TrialPicture(name, file, np.asarray(open_picture(file))))
        self._raw: dict[str, dict[str, Any]] = {prompt["name"]: prompt for prompt in raw["prompts"]}
        self.prompts = [
            PromptCase(name, _turns(prompt), tuple(prompt["pictures"])) for name, prompt in self._raw.items()
        ]
        self.texts = [
            TextCase(_turns(raw), None, tuple(raw["input_ids"]), len(raw["pictures"]))
            for raw in self._raw.values()
        ]

    def stop_ids(self) -> None:
        """Not stored."""

    def pixels(self, picture: int) -> Floats:
        """[3, height, width]."""
        return self._tensors[f"pixels/{picture}"]

    def tower(self, picture: int) -> Floats:
        """[tokens, vision hidden]."""
        return self._tensors[f"vision_tower/{picture}"]

    def embeddings(self, picture: int) -> Floats:
        """[tokens, hidden]."""
        return self._tensors[f"embeddings/{picture}"]

    def splice(self, prompt: PromptCase) -> None:
        """Not stored."""

    def logits(self, prompt: PromptCase) -> Floats:
        """[n, vocab]: of the prompt's last n positions."""
        return self._tensors[f"logits/{prompt.name}"]

    def continuation(self, prompt: PromptCase) -> Continuation | None:
        """Not stored; the prompt's own last positions stand behind its pictures too."""
        return None

    def greedy(self, prompt: PromptCase) -> GreedyAnswer:
        """The greedy answer, up to its end."""
        raw = self._raw[prompt.name]
        return GreedyAnswer(tuple(raw["greedy_ids"]), np.array(raw["greedy_margins"], dtype=np.float64))


def _turns(prompt: dict[str, Any]) -> tuple[tuple[str, str | None], ...]:
    return tuple((question, answer) for question, answer in prompt["turns"])
