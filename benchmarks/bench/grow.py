"""One point of how time grows, in a cell's process: more visual tokens, text, pictures, or context."""

import time
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.runtimes.model import Model

Point = dict[str, Any]  # x, and ms of each stage that grows
_DECODED = 8  # tokens whose mean time is a token's
_WORDS = [
    "the",
    "small",
    "red",
    "house",
    "stands",
    "near",
    "a",
    "tall",
    "green",
    "tree",
    "and",
]


class Grower:
    """Measures points with an opened model; each public method is one of `growth.AXES`.

    Args:
        model: that no token ends.
        picture: file of a picture.
    """

    def __init__(self, model: Model, picture: str) -> None:
        self._model, self._picture = model, picture

    def visual_tokens(self, amount: int) -> Point:
        """Rows of a picture, cut or repeated: what another tower or connector would hand over."""
        return {"x": amount, "ms": {"prefill": self._fill(amount)}}

    def text(self, amount: int) -> Point:
        """A question of so many words, without a picture."""
        self._model.forget()
        self._model.ask(" ".join(_WORDS[i % len(_WORDS)] for i in range(amount)), max_tokens=2)
        timings = self._model.last_timings
        assert timings is not None
        return {"x": timings.prompt_tokens, "ms": {"prefill": timings.prefill_ms}}

    def pictures(self, amount: int) -> Point:
        """Pictures that differ, because one that is there already is not encoded again."""
        given: list[Image.Image] = []
        for number in range(amount):
            picture = open_picture(self._picture).convert("RGB")
            corner = (0, 0, -(-picture.width // 2), -(-picture.height // 2))
            picture.paste((40 * number % 256, 0, 0), corner)
            given.append(picture)
        self._model.forget()
        self._model.ask("<image>\n" * amount + "What is this?", given, max_tokens=2)
        timings = self._model.last_timings
        assert timings is not None
        return {"x": amount, "ms": {"vision": timings.vision_ms, "prefill": timings.prefill_ms}}

    def context(self, amount: int) -> Point:
        """A token's time behind so many positions."""
        self._fill(amount)
        language, token = self._model.language, np.zeros(1, np.int32)
        start = time.perf_counter_ns()
        for number in range(_DECODED):
            language.evaluate(token, amount + number)
            language.last_logits()
        return {"x": amount, "ms": {"per token": (time.perf_counter_ns() - start) / 1e6 / _DECODED}}

    def _fill(self, amount: int) -> float:
        """Fill an empty context with a picture's rows; the time that took, in ms."""
        segment = self._rows[np.arange(amount) % len(self._rows)]  # [amount, hidden]
        self._model.forget()
        self._model.language.truncate(0)
        start = time.perf_counter_ns()
        self._model.language.evaluate(segment, 0)
        self._model.language.last_logits()
        return (time.perf_counter_ns() - start) / 1e6

    @cached_property
    def _rows(self) -> npt.NDArray[np.float32]:
        """Embeddings [tokens, hidden] of the picture."""
        how = self._model.bundle.manifest.vision.preprocessing
        pixels = preprocess(open_picture(self._picture), how)
        return np.asarray(self._model.vision.encode(pixels[None])[0], np.float32)
