"""Does an engine change an answer? Its embeddings against the bundle's own, through the same language model.

Asked where an engine's tensors miss a gate. Both answers are greedy and come from llama.cpp, so that what the
language model's quantization changes counts on neither side.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.errors import BackendError
from tinyllava_edge.reference_tensors import ReferencePrompt, read_reference_tensors
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.context import Context, Element, PictureRows
from tinyllava_edge.runtimes.registry import language_opener

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EqualAnswers:
    """How many reference questions with a picture are answered alike."""

    equal: int
    asked: int
    language: str

    @property
    def all_equal(self) -> bool:
        """Whether every one is."""
        return self.equal == self.asked

    def __str__(self) -> str:
        return f"answers equal on {self.equal} of {self.asked} ({self.language})"


def count_equal_answers(bundle: Bundle, encode: Callable[[Floats], Floats]) -> EqualAnswers | str:
    """Answer the reference questions with the engine's embeddings and with the stored ones.

    Returns:
        the count, or why nothing was asked: no question has a picture, llama.cpp does not open the bundle.

    Raises:
        BackendError: `encode` fails.
    """
    reference = read_reference_tensors(bundle)
    prompts = [prompt for prompt in reference.prompts if prompt.pictures]
    if not prompts:
        return "the bundle has no reference question with a picture"
    found = np.concatenate([encode(reference.pixels[i : i + 1]) for i in range(len(reference.pixels))])
    try:
        language = language_opener("llamacpp")(bundle, BackendOptions())
    except BackendError as error:
        return f"no reference question was asked: {error}"
    stop_ids = bundle.manifest.prompt.stop_ids
    with closing(language):
        context = Context(language)
        pairs = [
            [_greedy(context, prompt, rows, stop_ids) for rows in (reference.embeddings, found)]
            for prompt in prompts
        ]
    return EqualAnswers(sum(a == b for a, b in pairs), len(pairs), language.name)


def _greedy(context: Context, prompt: ReferencePrompt, rows: Floats, stop_ids: Sequence[int]) -> list[int]:
    """The greedy answer, as many tokens as the stored one has, up to a stop id."""
    pictures = iter([PictureRows(rows[index].tobytes(), rows[index]) for index in prompt.pictures])
    elements: list[Element] = [next(pictures) if i == IMAGE_TOKEN_ID else i for i in prompt.input_ids]
    context.prefill(elements)
    ids: list[int] = []
    while True:
        ids.append(int(context.last_logits().argmax()))
        if len(ids) == len(prompt.greedy_ids) or ids[-1] in stop_ids:
            return ids
        context.append(ids[-1])
